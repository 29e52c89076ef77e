"""What distillation reads besides the rest of a run's configuration: the key `distillation:`.

method: distillation
distillation: {teacher: Qwen/Qwen3-32B}
data: {sources: [{name: answers, path: teacher-answers.jsonl}]}     # off-policy: answers of the teacher
rl: {prompts: [{name: queries, path: queries.jsonl}]}               # or on-policy: answers that the student samples
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwen3_jax.bounds import above, between, check_bounds, whole
from qwen3_jax.endpoints import is_address
from qwen3_jax.errors import UserError
from qwen3_jax.training.own_devices import check_own_mesh
from sharding import MeshConfig


@dataclass(frozen=True)
class TeacherServer:
    """How the server of a teacher is asked.

    Attributes:
        model: its name for the teacher; null asks the server, which must have one.
        api_key_env: environment variable with its key; null sends none.
        timeout: seconds for one reply.
        tries: of one request that brings no reply.
        concurrency: requests at a time.
    """

    model: str | None = None
    api_key_env: str | None = None
    timeout: float = 300.0
    tries: int = 5
    concurrency: int = 16

    def __post_init__(self) -> None:
        check_bounds(
            vars(self), "distillation.server.", timeout=above(0, finite=True), tries=whole(1), concurrency=whole(1)
        )


@dataclass(frozen=True)
class DistillationConfig:
    """Strong-to-weak distillation (Qwen3 technical report, section 4.5): the student learns the teacher's distribution.

    Attributes:
        teacher: Hugging Face folder or hub id, with the student's tokenizer; or the address of an OpenAI-compatible server
            (http://HOST/v1) that gives log-probabilities of prompts, of which top_k are learned.
        form: exact, the divergence of the two distributions at each token; policy_gradient, of answers that the student samples
            (rl): log nu - log pi of the sampled token is its advantage in the objective rl.policy.
        divergence: of the form exact. forward_kl: KL(nu || pi); reverse_kl: KL(pi || nu); jsd: GKD's mixture (Agarwal et al.
            2023, arXiv 2306.13649, equation 1). null is reverse_kl on answers of the student, and forward_kl on data.
        beta: of jsd, between 0 (towards forward_kl) and 1 (towards reverse_kl); null is 0.5.
        temperature: logits of teacher and student are divided by it; with rl that is rl.rollouts.temperature, and null here.
        top_k: compare the teacher's k most probable tokens and the rest as one, instead of the whole vocabulary. The targets
            are computed before the steps that learn them and kept in the run's folder: of data once, in RUN/teacher.
        mesh: devices of the teacher, all axes given: the last ones, which the run's mesh does not use. null is the run's mesh.
        server: how a teacher behind an address is asked.
    """

    teacher: str
    form: Literal["exact", "policy_gradient"] = "exact"
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] | None = None
    beta: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    mesh: MeshConfig | None = None
    server: TeacherServer | None = None

    def __post_init__(self) -> None:
        check_bounds(vars(self), "distillation.", temperature=above(0, finite=True), top_k=whole(1), beta=between(0, 1))
        if self.form == "policy_gradient":
            self._check_policy_gradient()
        if self.beta is not None and self.divergence != "jsd":
            raise UserError("distillation.beta is read by divergence: jsd; leave it out, or set that.")
        if self.beta in (0, 1):
            raise UserError(
                f"distillation.beta is {self.beta:g}; jsd has values between 0 and 1, which themselves are divergence: "
                "forward_kl and reverse_kl."
            )
        if self.is_server and self.mesh is not None:
            raise UserError(
                "distillation.mesh is for a teacher in this process; leave it out, or name a folder as teacher."
            )
        if self.server is not None and not self.is_server:
            raise UserError(
                f"distillation.server is for a teacher behind an address, which {self.teacher!r} is not; leave it out."
            )
        if self.is_server and self.temperature not in (None, 1):
            raise UserError(
                f"distillation.temperature is {self.temperature:g}; a server gives the teacher's log-probabilities at 1: leave "
                "it out."
            )
        if self.form == "exact" and self.is_server and self.top_k is None:
            raise UserError(
                "distillation.teacher is a server, which gives no whole distributions: set distillation.top_k to the number of "
                "log-probabilities that it gives (20 of OpenAI's interface)."
            )
        check_own_mesh(self.mesh, "distillation.mesh")

    def _check_policy_gradient(self) -> None:
        for name in ("divergence", "beta", "top_k", "mesh"):
            if getattr(self, name) is not None:
                raise UserError(
                    f"distillation.{name} is read by form: exact, and the form is policy_gradient; leave it out."
                )

    @property
    def is_server(self) -> bool:
        """Whether the teacher is behind an address."""
        return is_address(self.teacher)

    @property
    def needs_states(self) -> bool:
        """Whether the steps read the teacher's hidden states: it runs beside the student."""
        return self.form == "exact" and self.top_k is None
