"""Google's google-cloud-iam, unchanged, against signetd's unix socket: all four rpcs, and what it makes of refusals.

usage: iam_credentials.py SOCKET ACCOUNT UNIQUE_ID CERTIFICATE
"""

import datetime
import json
import sys

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from google.api_core import exceptions
from google.cloud import iam_credentials_v1
from google.cloud.iam_credentials_v1.services.iam_credentials.transports import IAMCredentialsGrpcTransport

SOCKET, ACCOUNT, UNIQUE_ID, CERTIFICATE = sys.argv[1:]
KEY = x509.load_pem_x509_certificate(open(CERTIFICATE, "rb").read()).public_key()
CHANNEL = grpc.insecure_channel("unix:" + SOCKET)
CLIENT = iam_credentials_v1.IAMCredentialsClient(transport=IAMCredentialsGrpcTransport(channel=CHANNEL))
SCOPES = ["https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/pubsub"]


def name(account):
    return "projects/-/serviceAccounts/" + account


def claims_of(token, audience=None):
    return jwt.decode(token, KEY, ["RS256"], audience=audience, options={"require": ["iat", "exp", "iss", "sub"]})


for account in ACCOUNT, UNIQUE_ID:
    blob = b"GOOG4-RSA-SHA256\n20261122T000000Z\nscope\nhash"
    signed = CLIENT.sign_blob(name=name(account), payload=blob)
    KEY.verify(signed.signed_blob, blob, padding.PKCS1v15(), hashes.SHA256())

    payload = {"iss": ACCOUNT, "sub": ACCOUNT, "aud": "https://a.example/", "n": [1]}
    signed_jwt = CLIENT.sign_jwt(name=name(account), payload=json.dumps(payload))
    claims = jwt.decode(signed_jwt.signed_jwt, KEY, ["RS256"], audience="https://a.example/")
    assert claims.pop("exp") and claims == payload, claims
    assert jwt.get_unverified_header(signed_jwt.signed_jwt)["kid"] == signed_jwt.key_id == signed.key_id

    # The lifetime, and the default.
    for lifetime, seconds in (datetime.timedelta(minutes=10), 600), (None, 3600):
        token = CLIENT.generate_access_token(name=name(account), scope=SCOPES, lifetime=lifetime)
        claims = claims_of(token.access_token)
        assert (claims["iss"], claims["sub"], claims["scope"]) == (ACCOUNT, ACCOUNT, " ".join(SCOPES)), claims
        assert claims["exp"] - claims["iat"] == seconds, claims
        assert token.expire_time.timestamp() == claims["exp"], token.expire_time
        assert "aud" not in claims, claims

    for include_email in False, True:
        audience = "https://internal.example/"
        token = CLIENT.generate_id_token(name=name(account), audience=audience, include_email=include_email).token
        claims = claims_of(token, audience)
        assert (claims["iss"], claims["sub"], claims["email"]) == (ACCOUNT, ACCOUNT, ACCOUNT), claims
        assert claims.get("email_verified", False) == include_email, claims


def refused(error, field, call, **request):
    try:
        call(**{"name": name(ACCOUNT), **request})
    except error as refusal:
        assert field is None or refusal.message.startswith(field + ": "), refusal
        assert refusal.reason and refusal.domain == "signet", refusal
        return
    raise AssertionError(f"{request} is not refused")


INVALID, DENIED = exceptions.InvalidArgument, exceptions.PermissionDenied
RPCS = [
    (CLIENT.sign_blob, {"payload": b"x"}),
    (CLIENT.sign_jwt, {"payload": "{}"}),
    (CLIENT.generate_access_token, {"scope": SCOPES}),
    (CLIENT.generate_id_token, {"audience": "https://internal.example/"}),
]
for rpc, request in RPCS:
    for wrong in ACCOUNT, "projects/p/serviceAccounts/" + ACCOUNT, name(""), name("default"):
        refused(INVALID, "name", rpc, **{**request, "name": wrong})
    refused(INVALID, "delegates", rpc, **request, delegates=[name("b@project.example")])
    for account in "forbidden@project.example", "unknown@project.example", "123":
        refused(DENIED, None, rpc, **{**request, "name": name(account)})
for seconds in -1, 0, 3601, 43200:
    lifetime = datetime.timedelta(seconds=seconds)
    refused(INVALID, "lifetime", CLIENT.generate_access_token, scope=SCOPES, lifetime=lifetime)
for scope in [], [""], ["a b"]:
    refused(INVALID, "scope", CLIENT.generate_access_token, scope=scope)
for audience in "", "a b", "https://pubsub.googleapis.com/":
    refused(INVALID, "audience", CLIENT.generate_id_token, audience=audience)
for payload in "", "[]", '{"iss":"other@x"}', '{"exp":1}':
    refused(INVALID, "payload", CLIENT.sign_jwt, payload=payload)
refused(INVALID, "payload", CLIENT.sign_blob, payload=bytes(2**20 + 1))
print("ok")
