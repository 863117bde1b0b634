"""Which of five JWT libraries take a blob and a signature over it for a JWT?

The first line of standard input is the public key (PEM, base64), every other one a blob and its signature (both
base64). For each of those one line comes back: a JSON object of the libraries that accept it, with the claims they read.
"""

import base64
import json
import sys
import warnings

warnings.showwarning = lambda *_, **__: None

import google.auth.jwt
import jose.jwt
import joserfc.jws
import joserfc.jwt
import jwt
from authlib.jose import JsonWebSignature, JsonWebToken
from joserfc.jwk import RSAKey

PEM = base64.b64decode(sys.stdin.readline())
KEY = RSAKey.import_key(PEM)


def in_json_form(token):
    """The same as flattened JWS JSON (RFC 7515, 7.2.2), split at the first dot and at the last."""
    message, signature = token.rsplit(".", 1)
    for protected, payload in (message.split(".", 1), message.rsplit(".", 1)):
        yield {"protected": protected, "payload": payload, "signature": signature}


def first(function, values):
    for value in values:
        try:
            return function(value)
        except Exception:
            pass
    raise ValueError


LIBRARIES = {
    "PyJWT": lambda token: jwt.decode(
        token, PEM, ["RS256"], options={"verify_aud": False, "verify_iss": False, "verify_sub": False}
    ),
    "python-jose": lambda token: jose.jwt.decode(token, PEM.decode(), ["RS256"], options={"verify_aud": False}),
    "authlib": lambda token: JsonWebToken(["RS256"]).decode(token, PEM),
    "authlib JSON": lambda token: first(
        lambda form: json.loads(JsonWebSignature(["RS256"]).deserialize_json(form, PEM)["payload"]), in_json_form(token)
    ),
    "joserfc": lambda token: joserfc.jwt.decode(token, KEY, ["RS256"]).claims,
    "joserfc JSON": lambda token: first(
        lambda form: json.loads(joserfc.jws.deserialize_json(form, KEY, ["RS256"]).payload), in_json_form(token)
    ),
    "google-auth": lambda token: google.auth.jwt.decode(token, PEM),
}

for line in sys.stdin:
    blob, signature = map(base64.b64decode, line.split("\t"))
    token = blob + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")
    # A caller may hold a token as bytes or as text.
    forms = [token] + [form for form in [token.decode(errors="replace")] if form.encode() == token]
    accepted = {}
    for library, decode in LIBRARIES.items():
        for form in forms:
            try:
                claims = dict(decode(form))
                accepted[library] = json.loads(json.dumps(claims), parse_constant=str)
            except Exception:
                pass
    print(json.dumps(accepted))
