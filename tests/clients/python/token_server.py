"""A token endpoint as Google's is (RFC 7523), over TLS by an authority of its own, that believes one certificate's key.

usage: token_server.py FOLDER CERTIFICATE ACCOUNT

Writes FOLDER/ca.pem, prints its URL, then a line of JSON for each assertion that it verified. FOLDER/acts, where there is
one, tells what to do instead of answering, a line a request: a status, `hang`, or `short` for a token of 60 s.
"""

import datetime
import ipaddress
import json
import os
import ssl
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

FOLDER, CERTIFICATE, ACCOUNT = sys.argv[1:]
KEY = x509.load_pem_x509_certificate(open(CERTIFICATE, "rb").read()).public_key()
ACTS = os.path.join(FOLDER, "acts")
LOCK = threading.Lock()


def authority_and_certificate():
    now = datetime.datetime.now(datetime.timezone.utc)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority of the tests")])

    def certificate(subject, public_key, extension):
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(public_key)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(hours=1)).add_extension(extension, critical=True)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca = certificate(ca_name, ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=0))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = certificate(x509.Name([]), key.public_key(), names)
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return ca, leaf + key.private_bytes(*pem)


def next_act():
    with LOCK:
        acts = open(ACTS).read().split() if os.path.exists(ACTS) else []
        if acts:
            with open(ACTS, "w") as rest:
                rest.write("\n".join(acts[1:]))
        return acts[0] if acts else ""


class Endpoint(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode(), strict_parsing=True)
        act = next_act()
        if act == "hang":
            return time.sleep(60)
        if act.isdigit():
            return self.answer(int(act), {"error": "unavailable"}, Location=URL + "/elsewhere")
        if self.path != "/token" or form["grant_type"] != ["urn:ietf:params:oauth:grant-type:jwt-bearer"]:
            return self.answer(400, {"error": "unsupported_grant_type"})
        try:
            require = {"require": ["iss", "aud", "iat", "exp"]}
            claims = jwt.decode(form["assertion"][0], KEY, ["RS256"], audience=URL, issuer=ACCOUNT, options=require)
        except jwt.InvalidTokenError as error:
            return self.answer(400, {"error": "invalid_grant", "error_description": str(error)})
        if "unknown-scope" in claims.get("scope", ""):
            return self.answer(400, {"error": "invalid_scope", "error_description": "quoted: " + claims["scope"]})
        print(json.dumps(claims), flush=True)
        if "target_audience" in claims:
            id_claims = {"iss": "https://accounts.google.com", "aud": claims["target_audience"], "email": ACCOUNT}
            id_claims |= {"iat": int(time.time()), "exp": int(time.time()) + 3600}
            return self.answer(200, {"id_token": jwt.encode(id_claims, "not Google's key, but as long as one", "HS256")})
        lifetime = 60 if act == "short" else 3599
        token = f"ya29.{time.monotonic_ns()}"
        return self.answer(200, {"access_token": token, "expires_in": lifetime, "token_type": "Bearer"})

    def answer(self, status, body, **headers):
        body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ca, chain = authority_and_certificate()
with open(os.path.join(FOLDER, "ca.pem"), "wb") as file:
    file.write(ca)
server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
server.daemon_threads = True
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
with tempfile.NamedTemporaryFile() as file:
    file.write(chain)
    file.flush()
    context.load_cert_chain(file.name)
server.socket = context.wrap_socket(server.socket, server_side=True)
URL = f"https://127.0.0.1:{server.server_port}/token"
print(URL, flush=True)
server.serve_forever()
