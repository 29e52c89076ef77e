"""An OpenAI-compatible endpoint in this process that gets pictures, and answers as a test says."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from PIL import Image

from tests.helpers import loopback

Answer = tuple[int, str, str]
"""Status of HTTP, text of the answer (of a failure: its message), finish_reason."""


class VisionEndpoint:
    """What it has seen.

    Attributes:
        url: to be given as the endpoint.
        pictures: all that came, in order.
        bodies: of the requests.
    """

    def __init__(self, answer: Callable[[int, Image.Image], Answer]):
        self.url, self.answer = "", answer
        self.pictures: list[Image.Image] = []
        self.bodies: list[dict] = []
        self.lock = threading.Lock()


@contextmanager
def vision_endpoint(answer: Callable[[int, Image.Image], Answer]) -> Iterator[VisionEndpoint]:
    """Yield an endpoint whose `answer` gets the number of the request, counted from 0, and the picture."""
    endpoint = VisionEndpoint(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            (part,) = [part for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
            raw = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
            picture = Image.open(io.BytesIO(raw))
            with endpoint.lock:
                number = len(endpoint.pictures)
                endpoint.pictures.append(picture)
                endpoint.bodies.append(body)
            status, text, finish = endpoint.answer(number, picture)
            value = {
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
            sent = json.dumps(value if status == 200 else {"error": {"message": text}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

    with loopback.serving(Handler) as address:
        endpoint.url = f"{address}/v1"
        yield endpoint
