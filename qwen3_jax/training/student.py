"""Training the student that labels documents (`qwen3_jax.data.factory.student`).

    student, measured = train_student(labelled, held_out=0.1)

The loss is the mean over labels of the cross-entropy. Texts are padded to one number of features, so that one program serves.

Shapes: b documents, n features, v buckets, w width, c classes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qwen3_jax.data.factory.student import WORDS, Label, Labelled, Student, features, scores
from qwen3_jax.progress import progress_bar

BUCKETS, WIDTH = 2**16, 64
_FEATURES = 2 * WORDS


def train_student(
    labelled: Labelled,
    *,
    held_out: float = 0.1,
    epochs: int = 12,
    batch: int = 64,
    learning_rate: float = 0.02,
    buckets: int = BUCKETS,
    width: int = WIDTH,
    seed: int = 0,
) -> tuple[Student, dict[str, dict[str, float]]]:
    """Train on annotated documents; return the student and how it does on those that were held out.

    Args:
        labelled: texts and labels.
        held_out: share of the documents, chosen by the seed, one at least; the scores are of these alone.
        epochs: passes over the others.
        batch: documents of a step.
        learning_rate: of Adam, decayed to 0.
        buckets: of hashed words and pairs.
        width: of an embedding.
        seed: of the weights, the order and the documents held out.

    Returns:
        The student, and by label: accuracy, kappa, f1 (of values of 3 and more for numbers that reach beyond, else the mean
        over values), documents.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(labelled.documents))
    split = max(int(len(order) * held_out), 1)
    tested, trained = order[:split], order[split:]
    rows = [features(text, buckets) for text in labelled.documents]
    classes = {name: {value: place for place, value in enumerate(values)} for name, values in labelled.values.items()}
    targets = {name: np.array([classes[name][v] for v in given]) for name, given in labelled.labels.items()}
    params: dict[str, Any] = {"embed_vw": jnp.asarray(random.normal(size=(buckets, width)).astype(np.float32) / width)}
    params["heads"] = {
        name: jnp.zeros((width + 1, len(values)), jnp.float32) for name, values in labelled.values.items()
    }
    batches = max(len(trained) // batch, 1)
    optimizer = optax.adam(optax.linear_schedule(learning_rate, 0.0, epochs * batches))
    state = optimizer.init(params)
    step = jax.jit(functools.partial(_step, optimizer), donate_argnums=(0, 1))
    with progress_bar("training the student", epochs * batches) as bar:
        for _ in range(epochs):
            shuffled = random.permutation(trained)
            for start in range(batches):
                chosen = np.resize(shuffled[start * batch : (start + 1) * batch], batch)
                places, mask = _padded([rows[i] for i in chosen])
                params, state, loss = step(params, state, places, mask, {n: t[chosen] for n, t in targets.items()})
                bar.advance(note=f"loss {float(loss):.3f}")
    heads = {name: np.asarray(head) for name, head in params["heads"].items()}
    student = Student(np.asarray(params["embed_vw"]), heads, labelled.values)
    return student, _measure(student, labelled, tested)


def _measure(student: Student, labelled: Labelled, tested: np.ndarray) -> dict[str, dict[str, float]]:
    found = student.predict([labelled.documents[i] for i in tested])
    measured = {}
    for name, given in labelled.labels.items():
        values: Sequence[Label] = labelled.values[name]
        is_scale = all(type(value) is int for value in values) and max(values) > 3  # type: ignore[operator]
        result = scores([given[i] for i in tested], found[name], 3 if is_scale else None)
        measured[name] = result | {"documents": len(tested)}
    return measured


def _padded(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """int32 [b, n] and float32 [b, n]: buckets, and a share of the mean for each."""
    places = np.zeros((len(rows), _FEATURES), np.int32)
    mask = np.zeros((len(rows), _FEATURES), np.float32)
    for row, values in enumerate(rows):
        places[row, : len(values)] = values
        mask[row, : len(values)] = 1 / max(len(values), 1)
    return places, mask


def _step(optimizer: Any, params: Any, state: Any, places_bn: Any, mask_bn: Any, targets: Any) -> Any:
    def loss_of(params: Any) -> jax.Array:
        means_bw = jnp.einsum("bnw,bn->bw", params["embed_vw"][places_bn], mask_bn)
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(means_bw @ head[:-1] + head[-1], targets[name]).mean()
            for name, head in params["heads"].items()
        ]
        return jnp.stack(losses).mean()

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss
