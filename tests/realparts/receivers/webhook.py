#!/usr/bin/env python3
"""A receiver of webhooks that believes a message only if the reference library of Standard Webhooks does.

  PUT  /NAME/secrets  ["whsec_…", …]   what messages to this name may be signed with
  POST /NAME                           a message: 204 if a signature is good, 401 if none is; what is called unsigned… may lack one
  GET  /NAME                           what came: [{id, by (places of the secrets that verified it), body}]
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

lock = threading.Lock()
secrets: dict[str, list[str]] = {}
messages: dict[str, list[dict]] = {}


def verified(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    try:
        Webhook(secret).verify(body, headers)
        return True
    except WebhookVerificationError:
        return False


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, code: int, said: object = None) -> None:
        body = b"" if said is None else json.dumps(said).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def do_PUT(self) -> None:
        name = self.path.split("/")[1]
        with lock:
            secrets[name] = json.loads(self.body())
        self.answer(204)

    def do_GET(self) -> None:
        with lock:
            self.answer(200, messages.get(self.path.strip("/"), []))

    def do_POST(self) -> None:
        name, body = self.path.strip("/"), self.body()
        headers = {key.lower(): value for key, value in self.headers.items()}
        with lock:
            known = secrets.get(name, [])
            by = [place for place, secret in enumerate(known) if verified(secret, body, headers)]
            good = by or name.startswith("unsigned")
            if good:
                got = {"id": headers.get("webhook-id"), "by": by, "body": json.loads(body)}
                messages.setdefault(name, []).append(got)
        if good:
            self.answer(204)
        else:
            self.answer(401, {"error": "no signature is good"})

    def log_message(self, form: str, *values: object) -> None:
        print(self.path, form % values, flush=True)


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
