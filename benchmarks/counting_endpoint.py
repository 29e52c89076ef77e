"""An OpenAI-compatible chat endpoint that answers after a fixed time and counts what it serves; a process of its own.

    python benchmarks/counting_endpoint.py --seconds 0.1

It prints its port. POST /v1/chat/completions answers; GET /counts gives what was served since the last GET /reset, by question:
the first Q followed by a number in the last message. The standard library alone, so that any Python runs it.
"""

import argparse
import asyncio
import json
import re
import time
from collections import Counter


class Counting:
    """What has been served since the last reset.

    Attributes:
        arrived: by question, how often it was asked.
        served: by question, how many whole replies were written.
        prompt_tokens, completion_tokens: of these, as the replies said.
        same_key: replies that repeated one with the same Idempotency-Key, which an endpoint that honours it does not bill.
        first, last: times of the first request and the last reply.
        most: requests in progress at the same time, at most.
    """

    def __init__(self) -> None:
        self.arrived: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.prompt_tokens = self.completion_tokens = self.now = self.most = self.same_key = 0
        self.keys: set[bytes] = set()
        self.first = self.last = 0.0

    def summary(self) -> dict:
        """As JSON values."""
        return {
            "arrived": self.arrived, "served": self.served, "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens, "seconds": self.last - self.first, "most": self.most,
            "same_key": self.same_key,
        }  # fmt: skip


class Server:
    """Answers requests.

    Args:
        seconds: that every answer takes.
    """

    def __init__(self, seconds: float):
        self._seconds, self._counts = seconds, Counting()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, route, _ = head.split(b" ", 2)
                lines = head.lower().split(b"\r\n")
                keys = [line for line in lines if line.startswith(b"idempotency-key:")]
                sizes = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
                body = await reader.readexactly(sizes[0]) if sizes else b""
                status, value, question = await self._answer(method.decode(), route.decode(), body)
                raw = json.dumps(value).encode()
                writer.write(
                    b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(raw))
                    + raw
                )
                await writer.drain()
                if question:
                    self._count(question, value["usage"], keys)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is gone
        finally:
            writer.close()

    async def _answer(self, method: str, route: str, body: bytes) -> tuple[bytes, dict, str]:
        """Status, reply, and the question where it is an answer."""
        if route == "/counts":
            return b"200 OK", self._counts.summary(), ""
        if route == "/reset":
            self._counts = Counting()
            return b"200 OK", {}, ""
        if method == "GET":
            models = [{"id": "m", "object": "model", "created": 0, "owned_by": "x"}]
            return b"200 OK", {"object": "list", "data": models}, ""
        asked = json.loads(body)
        found = re.search(r"Q\d+", json.dumps(asked["messages"][-1:]))
        if found is None:  # curator asks for nothing, to read rate limits from the headers
            return b"400 Bad Request", {"error": {"message": "there is no question"}}, ""
        question = found.group()
        counts = self._counts
        counts.first = counts.first or time.time()
        counts.arrived[question] += 1
        counts.now += 1
        counts.most = max(counts.most, counts.now)
        try:
            await asyncio.sleep(self._seconds)
        finally:
            counts.now -= 1
        text = f"The answer to {question} is {len(question)}. " + "It was counted, character by character. " * 5
        prompt = sum(len(str(message["content"]).split()) for message in asked["messages"]) + 3
        completion = len(text.split())
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
            "logprobs": None,
        }
        value = {
            "id": f"chatcmpl-{id(asked)}", "object": "chat.completion", "created": int(time.time()),
            "model": asked["model"], "choices": [choice], "usage": usage,
        }  # fmt: skip
        return b"200 OK", value, question

    def _count(self, question: str, usage: dict, keys: list[bytes]) -> None:
        counts = self._counts
        counts.same_key += not counts.keys.isdisjoint(keys)
        counts.keys.update(keys)
        counts.last = time.time()
        counts.served[question] += 1
        counts.prompt_tokens += usage["prompt_tokens"]
        counts.completion_tokens += usage["completion_tokens"]


async def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.1, help="that an answer takes (default: 0.1)")
    args = parser.parse_args()
    server = await asyncio.start_server(Server(args.seconds).serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
