"""google-auth, as tests/clients/README.md says."""

import json
import os
import sys

import google.auth
from google.auth import impersonated_credentials
from google.auth.transport.requests import Request
from google.oauth2 import id_token

REQUEST = Request()
last = None


def token_of(credentials):
    if not credentials.valid:
        credentials.refresh(REQUEST)
    return credentials.token


def answer(verb, *arguments):
    global last
    if verb == "access":
        last, _ = google.auth.default(scopes=arguments)
        return token_of(last)
    if verb == "again":
        return token_of(last)
    if verb == "identity":
        return id_token.fetch_id_token(REQUEST, *arguments)
    # Its metadata credentials ask for the default account's tokens, whatever they are told.
    source, _ = google.auth.default(scopes=arguments[1:])
    email, *scopes = arguments
    override = f"http://{os.environ['GCE_METADATA_HOST']}/v1/projects/-/serviceAccounts/{email}:generateAccessToken"
    return token_of(impersonated_credentials.Credentials(source, email, scopes, iam_endpoint_override=override))


for line in sys.stdin:
    try:
        print(json.dumps({"token": answer(*line.split())}), flush=True)
    except Exception as error:
        print(json.dumps({"error": repr(error)}), flush=True)
