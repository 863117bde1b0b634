"""A stand-in for a Google API, which believes one account and the keys in one certificate.

usage: api.py CERTIFICATE ACCOUNT

Prints its URL. A request with a bearer token is answered with the token's claims, one with a V4 signed URL with "signed by"
and the account, any other with 401 and the reason. The Authorization header is never repeated.
"""

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, urlsplit

import jwt
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

CERTIFICATE, ACCOUNT = sys.argv[1:]
KEY = x509.load_pem_x509_certificate(open(CERTIFICATE, "rb").read()).public_key()


def claims_of(header):
    scheme, _, token = header.partition(" ")
    if scheme != "Bearer":
        raise ValueError("no bearer token")
    options = {"require": ["iss", "sub", "iat", "exp"], "verify_aud": False}
    claims = jwt.decode(token, KEY, ["RS256"], issuer=ACCOUNT, subject=ACCOUNT, options=options)
    if ("aud" in claims) == ("scope" in claims):
        raise ValueError("neither an audience alone nor scopes alone")
    if claims.get("aud") and not claims["aud"].endswith("/"):
        raise ValueError("the audience is no service")
    return claims


def verify_signed_url(method, path, host):
    """Recomputes what was signed (https://cloud.google.com/storage/docs/authentication/canonical-requests)."""
    parts = urlsplit(path)
    query = parse_qsl(parts.query, strict_parsing=True)
    # gcloud writes their names in lower case.
    named = {name.lower(): value for name, value in query}
    signature = bytes.fromhex(named["x-goog-signature"])
    email, day, *scope = named["x-goog-credential"].split("/")
    if named["x-goog-algorithm"] != "GOOG4-RSA-SHA256" or scope != ["auto", "storage", "goog4_request"]:
        raise ValueError("not V4")
    if named["x-goog-signedheaders"] != "host" or email != ACCOUNT:
        raise ValueError("other headers, or another account")
    signed = sorted((name, value) for name, value in query if name.lower() != "x-goog-signature")
    escaped = "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in signed)
    canonical = "\n".join([method, parts.path, escaped, f"host:{host}", "", "host", "UNSIGNED-PAYLOAD"])
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["GOOG4-RSA-SHA256", named["x-goog-date"], "/".join([day, *scope]), digest])
    KEY.verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if "x-goog-signature=" in self.path.lower():
                host = self.headers["Host"]
                try:
                    verify_signed_url(self.command, self.path, host)
                except InvalidSignature:
                    # Node's library signs the host without its port.
                    verify_signed_url(self.command, self.path, host.partition(":")[0])
                self.answer(200, {"signed by": ACCOUNT})
            else:
                self.answer(200, claims_of(self.headers.get("Authorization", "")))
        except (ValueError, KeyError, InvalidSignature, jwt.InvalidTokenError) as error:
            self.answer(401, {"error": f"{type(error).__name__}: {error}"})

    do_HEAD = do_POST = do_GET

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
server.daemon_threads = True
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
