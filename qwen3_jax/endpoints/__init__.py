"""Chat requests and their replies, whoever answers: the engine in this process, or an OpenAI-compatible endpoint.

    endpoint = Endpoint("http://localhost:8000/v1", "Qwen3-8B", concurrency=32)
    endpoint.submit(0, ChatRequest(({"role": "user", "content": "Hi"},), max_new_tokens=512))
    for number, reply in endpoint.collect():
        ...

`qwen3_jax.generation.backend.EngineBackend` has the same methods. `transport.py` is the HTTP alone. Imports no JAX.
"""

from qwen3_jax.endpoints.chat import Backend, ChatRequest, Reply, Tokens, prompt_bound
from qwen3_jax.endpoints.client import Endpoint
from qwen3_jax.endpoints.transport import EndpointError, Transport, is_address

__all__ = [
    "Backend",
    "ChatRequest",
    "Endpoint",
    "EndpointError",
    "Reply",
    "Tokens",
    "Transport",
    "is_address",
    "prompt_bound",
]
