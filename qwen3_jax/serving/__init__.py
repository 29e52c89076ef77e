"""HTTP: a server with OpenAI's and Anthropic's APIs and a thinking budget, and a chat page.

    qwen3 serve --model Qwen/Qwen3-0.6B                  # http://127.0.0.1:8000/v1, and the page at http://127.0.0.1:8000/

| file       | contents                                            |
|------------|-----------------------------------------------------|
| `app`      | the routes                                          |
| `guard`    | keys, sizes, host names, the request log            |
| `common`   | the fields that all requests have                   |
| `protocol` | the fields of requests of OpenAI's older APIs       |
| `objects`  | the objects inside of them                          |
| `fields`   | fields that are ignored or refused                  |
| `grammars` | JSON schemas and tool calls as constraints          |
| `worker`   | the engine's thread                                 |
| `startup`  | compiling while requests are answered already       |
| `replies`  | answers as OpenAI's objects and chunks              |
| `responses_body`, `responses_items`, `responses_reply` | OpenAI's API for agents: as a conversation, its answer |
| `messages_body`, `messages_blocks`, `messages_reply` | Anthropic's API: as a conversation, its answer |
| `agent_tools` | tools, and errors at a place, of both             |
| `replay`   | thinking that a client carries without reading it   |
| `events`   | server-sent events                                  |
| `errors`   | errors in the form of their route                   |
| `meters`   | Prometheus metrics                                  |

Imports `generation` and `text` only; no JAX. Needs the extra `serve`.
"""
