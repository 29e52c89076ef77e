"""Requests through an engine, with all of their tokens."""

from qwen3_jax import Engine


def run(engine: Engine, requests, arrivals=None, check=None) -> list[list]:
    """Return the tokens of each request; `arrivals` are the steps before which they are submitted."""
    arrivals = [0] * len(requests) if arrivals is None else arrivals
    todo = sorted(range(len(requests)), key=lambda i: arrivals[i])
    numbers, got, step = {}, [[] for _ in requests], 0
    while todo or engine.busy:
        while todo and arrivals[todo[0]] <= step:
            place = todo.pop(0)
            numbers[engine.submit(requests[place])] = place
        for token in engine.step():
            got[numbers[token.number]].append(token)
        if check is not None:
            check()
        step += 1
    assert all(tokens and tokens[-1].finish for tokens in got)
    assert not any(token.finish for tokens in got for token in tokens[:-1])
    return got


def ids(tokens) -> list[int]:
    return [token.id for token in tokens]
