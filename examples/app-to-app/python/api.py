"""The API App: lets in who is on its access list, and proves it by a JWT.

    api.py PORT AUDIENCE ACCESS

ACCESS is a file: {"email of a caller": "URL of its certificates"}.
"""

import base64
import json
import re
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.auth import exceptions, jwt

PORT, AUDIENCE, ACCESS = sys.argv[1:]
KNOWN = {}


def certificates(url, kid):
    """The map at a URL, kept for as long as its Cache-Control says. A kid that is not in it is looked for anew, once in a
    while: a caller may have a new key."""
    kept = KNOWN.get(url)
    now = time.monotonic()
    if kept is None or now >= kept["until"] or (kid not in kept["map"] and now >= kept["again"]):
        with urllib.request.urlopen(url, timeout=5) as response:
            age = re.search(r"max-age=(\d+)", response.headers.get("Cache-Control", ""))
            until = now + (int(age[1]) if age else 0)
            kept = KNOWN[url] = {"map": json.load(response), "until": until, "again": now + 1}
    return kept["map"]


def verify(token):
    """The email of whoever signed it; a ValueError tells why nobody is believed."""
    header, claims = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in token.split(".")[:2])
    issuer = claims.get("iss")
    with open(ACCESS) as file:
        url = json.load(file).get(issuer)
    if url is None:
        raise ValueError(f"{issuer} is not on the access list")
    # Signature, kid, expiry and audience.
    jwt.decode(token, certificates(url, header.get("kid")), audience=AUDIENCE)
    return issuer


class ApiApp(BaseHTTPRequestHandler):
    def do_GET(self):
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        try:
            if scheme != "Bearer":
                raise ValueError("no bearer token")
            self.answer(200, {"hello": verify(token)})
        except (ValueError, exceptions.GoogleAuthError) as error:
            self.answer(401, {"error": str(error)})

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(PORT)), ApiApp)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
