"""Slow tests that CI leaves to the soak tier, each with what CI runs of the same.

CPU seconds were measured in one run of both tiers at 5087861f, four processes on two cores of an AMD EPYC. A key is a test with
its parameters. `tests/conftest.py` marks them; docs/testing.md says how to run them.
"""

_ENGINE = "tests/generation/test_engine.py::"
_MESHES = "test_micro_batches_packing_and_eight_meshes_give_the_gradients_of_one_batch"
_POLICY = "test_micro_batches_packing_padding_and_eight_meshes_give_the_gradients_of_one_batch"
_SHARED = "test_answers_that_share_their_thinking_equal_those_generated_whole"

# test: (CPU seconds, what CI runs of the same)
LONG: dict[str, tuple[float, str]] = {
    "tests/checkpoint/test_memory.py::test_peak_host_memory_of_load[float32-False]": (
        31, "the peak of a quantised load, in the same file",
    ),
    "tests/cli/test_evaluate.py::test_a_command_that_is_killed_or_interrupted_continues": (
        48, "kills and interruptions of a run in evaluation/test_samples.py",
    ),
    "tests/cli/test_plan.py::test_the_command_runs_where_jax_has_not_started": (15, "plans by the command in this process"),
    "tests/data/factory/test_estimate.py::test_estimates_of_judged_answers_hold_what_the_job_uses[16]": (
        22, "the same assertions on 2 corpora",
    ),
    "tests/data/factory/test_filter.py::test_planted_faults_are_sorted_out_and_good_answers_stay[1-200]": (
        20, "all three phrasings with 30 problems",
    ),
    "tests/data/factory/test_generate.py::test_the_engine_gives_the_same_answers_again_and_a_forced_text_is_not_learned": (
        16, "jobs against an endpoint; forced tokens in generation/test_budget.py",
    ),
    "tests/data/factory/test_kills.py::test_killed_with_the_engine[2]": (56, "kills against an endpoint, in the same file"),
    "tests/data/test_prepare_command.py::test_memory_is_flat_over_a_corpus_larger_than_its_buffers": (
        36, "three kills of the same command",
    ),
    f"tests/evaluation/test_engine_source.py::{_SHARED}[hot-options3]": (13, "the same with other options and seeds"),
    f"tests/evaluation/test_engine_source.py::{_SHARED}[hot-options6]": (22, "the same with other options and seeds"),
    f"tests/evaluation/test_engine_source.py::{_SHARED}[penalties-options2]": (12, "the same with other options and seeds"),
    "tests/evaluation/test_engine_source.py::test_a_sample_does_not_depend_on_the_tasks_and_samples_beside_it": (
        20, "the engine's own test: a seed gives the same tokens in any company",
    ),
    "tests/evaluation/test_harness.py::test_equal_to_transformers_on_other_checkpoints[True-True]": (
        29, "test_equal_to_transformers, and the other checkpoints' logits in model/test_parity_with_transformers.py",
    ),
    "tests/evaluation/test_harness.py::test_the_command_finds_the_model_where_the_package_is_installed[editable0]": (
        29, "test_the_command_of_a_checkout",
    ),
    "tests/generation/test_budget.py::test_budgets_hold_under_speculation_and_preemption[draft_and_preemptions-3]": (
        38, "the same with prompt lookup, preempted too",
    ),
    f"{_ENGINE}test_constraints_and_biases_hold_in_any_company[data_2_tensor_2-preemptions]": (
        22, "the same on one device, offline; mixed requests on this mesh",
    ),
    f"{_ENGINE}test_mixed_requests_equal_transformers[moe-1_device-lookup_and_preemptions-60]": (
        25, "the same with the dense model, and MoE on eight devices",
    ),
    f"{_ENGINE}test_mixed_requests_equal_transformers[dense_tied-1_device-no_prefix_cache-60]": (
        17, "the same with the cache; a preempted run",
    ),
    f"{_ENGINE}test_a_seed_gives_the_same_tokens_alone_and_in_any_company[guessed]": (19, "the same batched"),
    "tests/model/test_dual_chunk.py::test_the_engine_gives_the_statements_greedy_tokens"
    "[everything-one_at_a_time_and_preemptions]": (18, "the same with small chunks and prompt lookup"),
    "tests/planner/test_gpu_plans.py::test_a_search_of_meshes_for_decoding": (40, "the search in planner/test_search.py"),
    "tests/planner/test_gpu_plans.py::test_decoding_on_one_gpu[4-8192]": (24, "other decode steps in the same file"),
    "tests/planner/test_gpu_plans.py::test_gpus_that_split_the_vocabulary_divide_the_rows_that_they_sample": (
        18, "sampling on a mesh gives the same tokens, in generation/test_sampling.py",
    ),
    "tests/planner/test_gpu_plans.py::test_the_command_prints_nothing_but_the_plan": (25, "plans for TPUs by the command"),
    "tests/planner/test_training_step.py::test_search_compiles_the_promising_and_ranks_them[none-1]": (
        29, "the search over given plans, in test_search.py",
    ),
    "tests/posttraining/test_reinforcement_processes.py::test_adapters_learn_and_their_base_is_the_reference": (
        53, "LoRA and RL apart: training/test_lora.py, test_reinforcement_runs.py",
    ),
    "tests/posttraining/test_reinforcement_processes.py::test_kills_at_random_moments_leave_no_trace[2]": (
        60, "the resume in the middle of a round, to the same bits",
    ),
    "tests/posttraining/test_reinforcement_processes.py::test_two_processes_sample_and_learn_as_one": (
        143, "two processes train as one (training/test_processes.py) and generate as one (sharding/test_two_processes.py)",
    ),
    "tests/serving/test_load.py::test_many_clients[8]": (70, "eight agents and clients in the other files of tests/serving"),
    "tests/sweeps/test_sweeps.py::test_a_search_proposes_verifies_and_is_read_by_train": (
        32, "a sweep that is resumed and read by train; the regression of a search",
    ),
    "tests/test_examples.py::test_finetune_trains_an_adapter": (22, "the same example with all weights; training/test_lora.py"),
    "tests/training/test_lora.py::test_a_plan_counts_no_moments_of_the_base[small]": (80, "the state has no such moments"),
    "tests/training/test_lora.py::test_a_run_resumes_to_the_same_bits_and_exports_what_it_trained": (
        59, "the resume of a run without adapters; adapters against peft",
    ),
    f"tests/training/test_policy_meshes.py::{_POLICY}[moe-some]": (35, "the same with all weights, and dense with some"),
    "tests/training/test_policy_meshes.py::test_an_empty_micro_batch_is_not_computed_and_the_result_is_the_same[moe]": (
        23, "the same, dense",
    ),
    "tests/training/test_posttraining_kills.py::test_the_laptop_configurations_run_and_learn": (
        37, "the commands of the configurations in test_readme.py",
    ),
    "tests/training/test_posttraining_kills.py::test_two_processes_compute_the_same_reference_together": (
        66, "the reference by one process; two processes train as one",
    ),
    f"tests/training/test_preferences.py::{_MESHES}[reward_model-moe-some]": (17, "the same for sft and dpo"),
}  # fmt: skip
