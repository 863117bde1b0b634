"""Google's libraries with a key that stays in its TPM or PKCS#11 token: what is to be signed goes to signetd."""

import datetime
import json
import os
import time

import grpc
from google.auth import credentials, crypt
from google.cloud import iam_credentials_v1
from google.cloud.iam_credentials_v1.services.iam_credentials.transports import IAMCredentialsGrpcTransport

# As `signetctl env` exports it.
SOCKET = os.environ.get("SIGNET_SOCKET", "/run/signet/signet.sock")


def connect(socket):
    transport = IAMCredentialsGrpcTransport(channel=grpc.insecure_channel("unix:" + socket))
    return iam_credentials_v1.IAMCredentialsClient(transport=transport)


class Signer(crypt.Signer):
    """Signs bytes, such as those of signed URLs."""

    key_id = None

    def __init__(self, email, socket=SOCKET):
        self._client, self._name = connect(socket), "projects/-/serviceAccounts/" + email

    def sign(self, message):
        message = message.encode() if isinstance(message, str) else message
        return self._client.sign_blob(name=self._name, payload=message).signed_blob


class JwtCredentials(credentials.Credentials):
    """A JWT access token for one service (AIP-4111), such as https://pubsub.googleapis.com/ with its final slash."""

    def __init__(self, email, audience, socket=SOCKET):
        super().__init__()
        self._client, self._email, self._audience = connect(socket), email, audience

    def refresh(self, request):
        now = int(time.time())
        claims = {"iss": self._email, "sub": self._email, "aud": self._audience, "iat": now, "exp": now + 3600}
        name = "projects/-/serviceAccounts/" + self._email
        self.token = self._client.sign_jwt(name=name, payload=json.dumps(claims)).signed_jwt
        self.expiry = datetime.datetime.fromtimestamp(claims["exp"], datetime.timezone.utc).replace(tzinfo=None)
