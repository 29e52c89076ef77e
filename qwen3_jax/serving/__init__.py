"""HTTP: an OpenAI-compatible server with a thinking budget, and a chat page.

    qwen3 serve --model Qwen/Qwen3-0.6B                  # http://127.0.0.1:8000/v1, and the page at http://127.0.0.1:8000/

| file       | contents                                            |
|------------|-----------------------------------------------------|
| `app`      | the routes                                          |
| `guard`    | keys, sizes, host names, the request log            |
| `protocol` | the fields of requests                              |
| `objects`  | the objects inside of them                          |
| `fields`   | fields that are ignored or refused                  |
| `grammars` | JSON schemas and tool calls as constraints          |
| `worker`   | the engine's thread                                 |
| `startup`  | compiling while requests are answered already       |
| `replies`  | answers as OpenAI's objects and chunks              |
| `events`   | server-sent events                                  |
| `errors`   | errors in OpenAI's form                             |
| `meters`   | Prometheus metrics                                  |

Imports `generation` and `text` only; no JAX. Needs the extra `serve`.
"""
