"""HTTP: an OpenAI-compatible server with a thinking budget, and a chat page.

    qwen3 serve --model Qwen/Qwen3-0.6B                  # http://127.0.0.1:8000/v1, and the page at http://127.0.0.1:8000/

| file       | what it knows                                                            |
|------------|--------------------------------------------------------------------------|
| `protocol` | the requests: every field, and what becomes of those that are not here   |
| `worker`   | the engine's thread                                                      |
| `grammars` | JSON schemas and tool calls as constraints                               |
| `replies`  | answers as OpenAI's objects and chunks                                   |
| `meters`   | what Prometheus reads                                                    |
| `guard`    | keys, sizes, hosts, one line of log per request                          |
| `app`      | the routes                                                               |

Talks to `generation` alone; no JAX here. Needs the extra `serve`.
"""
