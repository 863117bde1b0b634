"""The Client App: publishes its certificates, and calls the API App with ID tokens that signetd signs.

    client.py PORT EMAIL API_URL AUDIENCE

/certificates is the map {"kid": "pem"}; /call makes a call and answers what came of it; / shows a person what happened.
"""

import base64
import html
import json
import os
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, EMAIL, API_URL, AUDIENCE = sys.argv[1:]
SIGNETD = "http://" + os.environ["GCE_METADATA_HOST"]


def id_token():
    body = json.dumps({"audience": AUDIENCE, "includeEmail": True}).encode()
    url = f"{SIGNETD}/v1/projects/-/serviceAccounts/{EMAIL}:generateIdToken"
    # As Google's API wants one; here any will do.
    headers = {"Content-Type": "application/json", "Authorization": "Bearer any"}
    request = urllib.request.Request(url, body, headers)
    return json.load(urllib.request.urlopen(request))["token"]


def call(token):
    request = urllib.request.Request(API_URL, headers={"Authorization": "Bearer " + token})
    try:
        response = urllib.request.urlopen(request)
    except urllib.error.HTTPError as refusal:
        response = refusal
    return response.status, response.read().decode()


def certificates():
    """As signetd publishes them now: the next key is there before it signs, and the last one after. And for how long to keep them."""
    response = urllib.request.urlopen(f"{SIGNETD}/robot/v1/metadata/x509/{EMAIL}")
    return response.read().decode(), response.headers["Cache-Control"]


def page():
    token = id_token()
    status, answer = call(token)
    header, claims = (base64.urlsafe_b64decode(part + "==").decode() for part in token.split(".")[:2])
    published, cache = certificates()
    shown = [("Header", header), ("Claims", claims), (f"Answer of the API App: {status}", answer)]
    shown += [(f"Certificates ({cache})", json.dumps(json.loads(published), indent=2).replace("\\n", "\n"))]
    parts = "".join(f"<h2>{html.escape(title)}</h2><pre>{html.escape(text)}</pre>" for title, text in shown)
    return f"<!doctype html><title>Client App</title><h1>{html.escape(EMAIL)} calls {html.escape(API_URL)}</h1>{parts}"


class ClientApp(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/certificates":
            published, cache = certificates()
            self.answer(200, "application/json", published, cache)
        elif self.path == "/call":
            status, answer = call(id_token())
            self.answer(status, "application/json", answer)
        elif self.path == "/":
            self.answer(200, "text/html; charset=utf-8", page())
        else:
            self.answer(404, "text/plain", "nothing")

    def answer(self, status, kind, body, cache="no-store"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", cache)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(PORT)), ClientApp)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
