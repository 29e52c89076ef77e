"""Chat requests and their replies, whoever answers: the engine in this process, or an OpenAI-compatible endpoint.

    endpoint = Endpoint("http://localhost:8000/v1", "Qwen3-8B", concurrency=32)
    endpoint.submit(0, ChatRequest((Message,), max_new_tokens=512))
    for number, reply in endpoint.collect():
        ...

`qwen3_jax.generation.backend.EngineBackend` has the same methods. Imports no JAX.
"""

from qwen3_jax.endpoints.chat import Backend, ChatRequest, Reply, Tokens, prompt_bound
from qwen3_jax.endpoints.client import Endpoint, EndpointError

__all__ = ["Backend", "ChatRequest", "Endpoint", "EndpointError", "Reply", "Tokens", "prompt_bound"]
