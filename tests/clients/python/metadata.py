"""google-auth, unchanged, led to signetd by the environment: what it gets, and what it makes of a refusal.

usage: metadata.py CERTIFICATE ACCOUNT STAGE

The rules allow devstorage.* for 200 s. STAGE is `all`, or the scope of one access token.
"""

import sys

import google.auth
import jwt
from cryptography import x509
from google.auth import exceptions
from google.auth.transport.requests import Request
from google.oauth2 import id_token

CERTIFICATE, ACCOUNT, STAGE = sys.argv[1:]
KEY = x509.load_pem_x509_certificate(open(CERTIFICATE, "rb").read()).public_key()
SCOPE = "https://www.googleapis.com/auth/"
REQUEST = Request()


def claims_of(credentials):
    credentials.refresh(REQUEST)
    return jwt.decode(credentials.token, KEY, ["RS256"], options={"require": ["iat", "exp", "iss", "sub"]})


if STAGE != "all":
    credentials, _ = google.auth.default(scopes=[SCOPE + STAGE])
    assert claims_of(credentials)["scope"] == SCOPE + STAGE
    print("ok")
    sys.exit()

credentials, project = google.auth.default(scopes=[SCOPE + "pubsub"])
claims = claims_of(credentials)
assert (claims["iss"], claims["sub"], claims["scope"]) == (ACCOUNT, ACCOUNT, SCOPE + "pubsub"), claims
assert (project, credentials.service_account_email) == ("project", ACCOUNT), project
assert credentials.valid and not credentials.expired

two = credentials.with_scopes([SCOPE + "pubsub", SCOPE + "bigquery"])
assert set(claims_of(two)["scope"].split(" ")) == {SCOPE + "bigquery", SCOPE + "pubsub"}, two.token

# A short-lived token is a reason to refresh at once: the library asks for each request.
short = credentials.with_scopes([SCOPE + "devstorage.read_only"])
for _ in range(2):
    headers = {}
    short.before_request(REQUEST, "GET", "https://storage.googleapis.com/", headers)
    claims = jwt.decode(headers["authorization"].removeprefix("Bearer "), KEY, ["RS256"])
    assert claims["exp"] - claims["iat"] == 200, claims
    assert short.expired, short.expiry

audience = "https://internal.example/"
token = id_token.fetch_id_token(REQUEST, audience)
claims = jwt.decode(token, KEY, ["RS256"], audience=audience)
assert (claims["iss"], claims["email"]) == (ACCOUNT, ACCOUNT), claims

try:
    credentials.with_scopes([SCOPE + "drive"]).refresh(REQUEST)
    raise SystemExit("drive is not denied")
except exceptions.RefreshError as refusal:
    assert "403" in str(refusal) or "not allowed" in str(refusal), refusal
print("ok")
