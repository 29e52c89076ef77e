"""Tests that are moved to another tier than they are marked for. `tests/conftest.py` adds the marks.

SLOW: default tests that CI runs with the slow ones, so that the default tier takes minutes.
LONG: slow tests that CI leaves to the soak tier. docs/testing.md says how to run them.

A key is a test with its parameters. CPU seconds: one run of the default tier at 90db370f and one of both tiers at 5087861f,
three workers on two cores of an AMD EPYC, beside other work; they include what is compiled for the tests behind it too.
"""

# what the default tier runs of the same: file: test: CPU seconds
SLOW: dict[str, dict[str, dict[str, float]]] = {
    "rewards that rise in a run; one rollout against the trainer, MoE on a mesh; episodes of another policy": {
        "posttraining/test_reinforcement_runs.py": {
            "test_a_run_resumes_to_the_same_bits_in_the_middle_of_a_round": 76,
            "test_prompts_that_cannot_be_scored_or_asked_are_named": 35,
        },
        "posttraining/test_rollout_log_probs.py": {
            "test_sampled_tokens_have_the_trainers_log_probabilities[dense-preempted]": 34,
            "test_new_weights_answer_as_a_fresh_engine_and_share_nothing_with_the_old_ones": 20,
        },
        "posttraining/test_episodes.py": {
            "test_episodes_carry_tokens_and_their_log_probabilities_are_the_trainers[keep]": 19,
        },
    },
    "runs of each method that write all they promise; a step's gradients; checkpoints that are damaged": {
        "training/test_run.py": {
            "test_an_interrupted_run_resumes_bit_equal_to_an_unbroken_one": 50,
        },
        "training/test_posttraining_runs.py": {
            "test_dpo_keeps_its_reference_resumes_and_refuses_a_stale_one": 18,
            "test_dpo_refuses_a_reference_of_other_data": 14,
            "test_a_reward_model_is_exported_and_read_and_its_flops_are_counted": 9,
        },
    },
    "the same objective by its definition, and on one device; gradients of one mesh": {
        "training/test_policy_meshes.py": {
            "test_micro_batches_packing_padding_and_eight_meshes_give_the_gradients_of_one_batch[dense]": 13,
            "test_an_empty_micro_batch_is_not_computed_and_the_result_is_the_same[dense]": 10,
            "test_scores_and_their_gradients_equal_those_of_all_logits[False]": 10,
            "test_scores_and_their_gradients_equal_those_of_all_logits[True]": 8,
        },
        "training/test_policy.py": {
            "test_every_option_has_the_value_and_the_gradient_of_its_definition[dr_grpo]": 7,
            "test_every_option_has_the_value_and_the_gradient_of_its_definition[dapo]": 6,
        },
        "training/test_preferences.py": {
            "test_a_reward_is_read_at_the_last_token_and_its_loss_is_bradley_and_terry_s": 11,
        },
        "training/test_exact_step.py": {
            "test_balance_loss_and_its_gradient_equal_numpy_over_the_global_batch[False-8]": 5,
            "test_balance_loss_and_its_gradient_equal_numpy_over_the_global_batch[True-8]": 4,
            "test_gradients_equal_the_single_device_big_batch[dense-context2_tensor2_data2-8-dots]": 8,
            "test_gradients_equal_the_single_device_big_batch[moe-replica2_data2_context2-2-full]": 6,
            "test_bf16_moments_take_half_and_stay_close": 8,
            "test_logits_of_the_whole_batch_never_exist": 7,
            "test_quantised_products_are_close_and_learn[int8]": 4,
        },
    },
    "mixed requests against transformers; seeds in any company; rules of budgets, which are a property of every answer": {
        "generation/test_budget.py": {
            "test_budgets_hold_under_speculation_and_preemption[lookup_and_preemptions-3]": 28,
            "test_rows_are_independent": 23,
            "test_the_random_models_reach_every_case": 6,
        },
        "generation/test_engine.py": {
            "test_mixed_requests_equal_transformers[dense_tied-1_device-lookup_and_preemptions-60]": 14,
            "test_constraints_and_biases_hold_in_any_company[1_device-offline]": 22,
            "test_a_cache_grows_when_it_is_full": 18,
            "test_a_seed_gives_the_same_tokens_alone_and_in_any_company[preempted_and_guessed]": 5,
        },
        "generation/test_engine_options.py": {
            "test_a_quantised_cache_is_near[int8]": 16,
        },
        "generation/test_sampling.py": {
            "test_streams_return_what_generate_does[tools1]": 19,
            "test_n_answers_differ_and_repeat": 12,
        },
        "generation/test_bookkeeping.py": {
            "test_prefill_and_decode_tokens_add_up": 9,
            "test_without_a_prefix_cache_every_prompt_token_is_computed": 14,
        },
        "generation/test_memory.py": {
            "test_programs_copy_neither_weights_nor_cache": 6,
        },
        "generation/test_requests.py": {
            "test_answers_may_fill_the_context_but_not_pass_it": 6,
        },
        "sharding/test_meshes_agree.py": {
            "test_generation_on_a_mesh_gives_the_same_tokens[data2_expert2_tensor2-moe]": 18,
        },
    },
    "log probabilities of texts of a dense model; prompts of any length against transformers": {
        "generation/test_scores.py": {
            "test_a_preempted_text_is_reported_once": 13,
            "test_log_probabilities_of_what_an_answer_was_drawn_from": 6,
            "test_quantised_weights": 5,
        },
        "generation/test_greedy_against_transformers.py": {
            "test_greedy_tokens_equal_transformers[combined-False]": 9,
            "test_the_end_token_of_the_generation_config_ends_an_answer": 5,
        },
        "generation/test_adapters.py": {
            "test_whatever_takes_a_model_takes_one_of_its_adapters_or_refuses_the_name[dense]": 14,
        },
        "serving/test_adapters.py": {
            "test_requests_choose_an_adapter_by_the_name_of_the_model": 17,
        },
        "model/test_dual_chunk.py": {
            "test_prefill_and_decode_equal_the_statement[plain]": 6,
        },
    },
    "the same run, interrupted without an engine; answers that share their thinking, greedy": {
        "evaluation/test_engine_source.py": {
            "test_answers_that_share_their_thinking_equal_those_generated_whole[hot-options1]": 20,
            "test_limits_and_budgets_are_lowered_to_what_the_context_holds_and_the_sample_says_so": 10,
        },
        "evaluation/test_samples.py": {
            "test_a_run_on_the_engine_that_is_interrupted_often_gives_the_same_file[6]": 18,
        },
        "evaluation/test_harness.py": {
            "test_results_go_to_the_cache_as_they_come": 6,
        },
    },
    "a server that runs: requests, limits, signals within a process": {
        "serving/test_safety.py": {
            "test_sigterm_lets_running_answers_finish": 16,
            "test_a_limit_of_zero[seconds]": 15,
        },
        "serving/test_startup.py": {
            "test_a_signal_during_the_start_is_heard[15--15]": 9,
        },
        "serving/test_worker.py": {
            "test_a_failed_engine_raises_for_all_clients": 4,
            "test_a_server_with_a_failed_engine_is_unhealthy": 4,
        },
    },
    "the planner's arithmetic, its prices and its search over given plans; plans of a decode step": {
        "planner/test_training_step.py": {
            "test_a_plan_needs_only_the_configuration": 17,
            "test_arithmetic_is_what_the_architecture_needs": 17,
        },
    },
    "the same command in another form, in the same file": {
        "cli/test_infer.py": {
            "test_messages_no_thinking_stop_and_a_mesh": 9,
            "test_the_script_reads_a_pipe_streams_and_stops_at_ctrl_c": 8,
        },
        "cli/test_chat.py": {
            "test_ctrl_c_on_a_terminal": 8,
        },
        "cli/test_quantize.py": {
            "test_a_folder_is_written_that_loads_and_what_it_lost_is_printed[int8-4]": 7,
            "test_a_folder_is_written_that_loads_and_what_it_lost_is_printed[int8-0]": 5,
        },
        "test_examples.py": {
            "test_budget_curve_counts_right_answers_and_draws_them": 11,
        },
        "data/factory/test_student.py": {
            "test_the_command_trains_measures_and_labels": 8,
        },
        "data/factory/test_kills.py": {
            "test_killed_against_an_endpoint_that_fails[4]": 9,
        },
        "data/factory/test_estimate.py": {
            "test_estimates_of_judged_answers_hold_what_the_job_uses[2]": 6,
        },
    },
    "the same numbers on one device, or of another kind of weights": {
        "kernels/test_experts.py": {
            "test_outside_of_a_jit_a_mesh_computes_the_same[serving_data2_expert4]": 9,
            "test_compiles_for_tpu[expert2_tensor2-v5e-sizes0]": 10,
            "test_all_to_all_in_chunks_where_a_device_would_receive_too_much": 6,
        },
        "kernels/test_quantized.py": {
            "test_training_and_unknown_names_are_refused": 6,
        },
        "sharding/test_meshes_agree.py": {
            "test_logits_and_shares_on_every_mesh[data2_expert2_tensor2-moe]": 7,
            "test_a_dimension_that_does_not_divide_is_named[False]": 7,
        },
        "checkpoint/test_native.py": {
            "test_round_trip_is_bit_equal_across_layouts_and_meshes[mixed-True-False-True]": 7,
        },
        "checkpoint/test_quantized_load.py": {
            "test_a_quantised_model_generates_as_the_model_it_stands_for[int4]": 8,
            "test_any_mesh_holds_the_same_numbers_and_gives_the_same_logits[moe-int8-axes9]": 4,
            "test_logits_are_off_by_what_random_errors_of_half_a_step_do[int8-moe]": 4,
        },
        "checkpoint/test_mlx.py": {
            "test_mlx_loads_what_is_saved_and_computes_the_same[moe]": 8,
        },
    },
}

MOVED_TO_SLOW = {f"tests/{file}::{test}" for files in SLOW.values() for file, tests in files.items() for test in tests}

# file: test: (CPU seconds, what CI runs of the same)
_LONG: dict[str, dict[str, tuple[float, str]]] = {
    "checkpoint/test_memory.py": {
        "test_peak_host_memory_of_load[float32-False]": (31, "the peak of a quantised load, in the same file"),
    },
    "cli/test_evaluate.py": {
        "test_a_command_that_is_killed_or_interrupted_continues": (
            48, "kills and interruptions of a run in evaluation/test_samples.py",
        ),
    },
    "cli/test_plan.py": {
        "test_the_command_runs_where_jax_has_not_started": (15, "plans by the command in this process"),
    },
    "data/factory/test_estimate.py": {
        "test_estimates_of_judged_answers_hold_what_the_job_uses[16]": (22, "the same assertions on 2 corpora"),
    },
    "data/factory/test_filter.py": {
        "test_planted_faults_are_sorted_out_and_good_answers_stay[1-200]": (20, "all three phrasings with 30 problems"),
    },
    "data/factory/test_generate.py": {
        "test_the_engine_gives_the_same_answers_again_and_a_forced_text_is_not_learned": (
            16, "jobs against an endpoint; forced tokens in generation/test_budget.py",
        ),
    },
    "data/factory/test_kills.py": {
        "test_killed_with_the_engine[2]": (56, "kills against an endpoint, in the same file"),
    },
    "data/test_prepare_command.py": {
        "test_memory_is_flat_over_a_corpus_larger_than_its_buffers": (36, "three kills of the same command"),
    },
    "evaluation/test_engine_source.py": {
        "test_answers_that_share_their_thinking_equal_those_generated_whole[hot-options3]": (
            13, "the same with other options and seeds",
        ),
        "test_answers_that_share_their_thinking_equal_those_generated_whole[hot-options6]": (
            22, "the same with other options and seeds",
        ),
        "test_answers_that_share_their_thinking_equal_those_generated_whole[penalties-options2]": (
            12, "the same with other options and seeds",
        ),
        "test_a_sample_does_not_depend_on_the_tasks_and_samples_beside_it": (
            20, "the engine's own test: a seed gives the same tokens in any company",
        ),
        "test_answers_that_share_their_thinking_equal_those_generated_whole[greedy-options5]": (
            15, "other options, greedy and sampled",
        ),
    },
    "evaluation/test_harness.py": {
        "test_equal_to_transformers_on_other_checkpoints[True-True]": (
            29, "test_equal_to_transformers, and the other checkpoints' logits in model/test_parity_with_transformers.py",
        ),
        "test_the_command_finds_the_model_where_the_package_is_installed[editable0]": (
            29, "test_the_command_of_a_checkout",
        ),
    },
    "generation/test_adapters.py": {
        "test_a_batch_of_three_adapters_and_none_is_each_alone[moe]": (
            38, "the same, dense; adapters of MoE models in checkpoint/test_adapters.py",
        ),
        "test_quantised_bases_and_meshes[8-int8-axes1-compared1]": (
            20, "an int4 base on one device; adapters on meshes in training/test_lora.py",
        ),
    },
    "generation/test_budget.py": {
        "test_budgets_hold_under_speculation_and_preemption[draft_and_preemptions-3]": (
            38, "the same with prompt lookup, preempted too",
        ),
    },
    "generation/test_engine.py": {
        "test_constraints_and_biases_hold_in_any_company[data_2_tensor_2-preemptions]": (
            22, "the same on one device, offline; mixed requests on this mesh",
        ),
        "test_mixed_requests_equal_transformers[moe-1_device-lookup_and_preemptions-60]": (
            25, "the same with the dense model, and MoE on eight devices",
        ),
        "test_mixed_requests_equal_transformers[dense_tied-1_device-no_prefix_cache-60]": (
            17, "the same with the cache; a preempted run",
        ),
        "test_a_seed_gives_the_same_tokens_alone_and_in_any_company[guessed]": (19, "the same batched"),
        "test_mixed_requests_equal_transformers[dense_tied-1_device-preemptions-60]": (
            15, "the same with prompt lookup, and without a prefix cache",
        ),
        "test_mixed_requests_equal_transformers[dense_tied-data_2_tensor_2-preemptions-60]": (
            13, "MoE on eight devices, preemptions on one",
        ),
    },
    "generation/test_draw.py": {
        "test_a_draw_does_not_depend_on_rounding[{'top_p': 0.99}-400]": (14, "100 draws of it, and 400 without top_p"),
    },
    "generation/test_sampling.py": {
        "test_streams_return_what_generate_does[None]": (32, "the same with tools"),
    },
    "generation/test_scores.py": {
        "test_log_probabilities_of_texts[moe]": (15, "the same, dense; on a mesh"),
    },
    "kernels/test_attention.py": {
        "test_32k_tokens_over_eight_parts": (16, "fewer tokens over as many parts"),
    },
    "kernels/test_attention_compiles_for_tpu.py": {
        "test_splash_compiles[v5p-32k in order]": (19, "the same kernels with fewer tokens"),
    },
    "kernels/test_experts.py": {
        "test_compiles_for_tpu[data2_expert2-v5p-sizes15]": (12, "the other meshes and sizes in the same test"),
        "test_compiles_for_tpu[one-v5p-sizes10]": (10, "the other meshes and sizes in the same test"),
    },
    "model/test_dual_chunk.py": {
        "test_the_engine_gives_the_statements_greedy_tokens[everything-one_at_a_time_and_preemptions]": (
            18, "the same with small chunks and prompt lookup",
        ),
        "test_the_engine_gives_the_statements_greedy_tokens[plain-as_it_is]": (
            14, "the same with small chunks, prompt lookup and everything else",
        ),
    },
    "planner/test_gpu_plans.py": {
        "test_a_search_of_meshes_for_decoding": (40, "the search in planner/test_search.py"),
        "test_decoding_on_one_gpu[4-8192]": (24, "other decode steps in the same file"),
        "test_gpus_that_split_the_vocabulary_divide_the_rows_that_they_sample": (
            18, "sampling on a mesh gives the same tokens, in generation/test_sampling.py",
        ),
        "test_the_command_prints_nothing_but_the_plan": (25, "plans for TPUs by the command"),
        "test_training_of_the_smallest_model_on_eight_gpus": (
            22, "a training step compiled for eight GPUs in kernels/test_gpu_compiles.py; two nodes planned",
        ),
        "test_decoding_with_int8_weights": (21, "the step itself in kernels/test_gpu_compiles.py"),
    },
    "planner/test_training_step.py": {
        "test_search_compiles_the_promising_and_ranks_them[none-1]": (
            29, "the search over given plans, in test_search.py",
        ),
    },
    "posttraining/test_reinforcement_processes.py": {
        "test_adapters_learn_and_their_base_is_the_reference": (
            53, "LoRA and RL apart: training/test_lora.py, test_reinforcement_runs.py",
        ),
        "test_kills_at_random_moments_leave_no_trace[2]": (60, "the resume in the middle of a round, to the same bits"),
        "test_two_processes_sample_and_learn_as_one": (
            143, "two processes train as one (training/test_processes.py) and generate as one (sharding/test_two_processes.py)",
        ),
    },
    "posttraining/test_rollout_log_probs.py": {
        "test_sampled_tokens_have_the_trainers_log_probabilities[dense-mesh]": (38, "MoE on a mesh, dense preempted"),
        "test_sampled_tokens_have_the_trainers_log_probabilities[bfloat16]": (
            29, "the same in float32; bfloat16 of the model and of the trainer in their own files",
        ),
    },
    "serving/test_load.py": {
        "test_many_clients[8]": (70, "eight agents and clients in the other files of tests/serving"),
    },
    "sharding/test_meshes_agree.py": {
        "test_generation_on_a_mesh_gives_the_same_tokens[tensor4-dense]": (16, "the same with MoE over three axes"),
    },
    "sweeps/test_sweeps.py": {
        "test_a_search_proposes_verifies_and_is_read_by_train": (
            32, "a sweep that is resumed and read by train; the regression of a search",
        ),
    },
    "test_examples.py": {
        "test_finetune_trains_an_adapter": (22, "the same example with all weights; training/test_lora.py"),
    },
    "training/test_lora.py": {
        "test_a_plan_counts_no_moments_of_the_base[small]": (80, "the state has no such moments"),
        "test_a_run_resumes_to_the_same_bits_and_exports_what_it_trained": (
            59, "the resume of a run without adapters; adapters against peft",
        ),
    },
    "training/test_losses_and_optimizer.py": {
        "test_steps_on_a_mesh_equal_one_device_and_split_the_state_as_the_rules_say": (
            19, "gradients of meshes in training/test_exact_step.py; the planner's state by the rules",
        ),
    },
    "training/test_policy_meshes.py": {
        "test_micro_batches_packing_padding_and_eight_meshes_give_the_gradients_of_one_batch[moe-some]": (
            35, "the same with all weights, and dense with some",
        ),
        "test_an_empty_micro_batch_is_not_computed_and_the_result_is_the_same[moe]": (23, "the same, dense"),
    },
    "training/test_posttraining_kills.py": {
        "test_the_laptop_configurations_run_and_learn": (37, "the commands of the configurations in test_readme.py"),
        "test_two_processes_compute_the_same_reference_together": (
            66, "the reference by one process; two processes train as one",
        ),
    },
    "training/test_preferences.py": {
        "test_micro_batches_packing_and_eight_meshes_give_the_gradients_of_one_batch[reward_model-moe-some]": (
            17, "the same for dpo, and dense",
        ),
        "test_micro_batches_packing_and_eight_meshes_give_the_gradients_of_one_batch[sft-moe-some]": (
            17, "the same for dpo, and dense",
        ),
    },
}  # fmt: skip

LONG = {f"tests/{file}::{test}" for file, tests in _LONG.items() for test in tests}
