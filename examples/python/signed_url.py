"""A Cloud Storage V4 signed URL, signed in the token. Needs the operation sign-blob, at best with
blob_prefixes = ["GOOG4-RSA-SHA256\\n"], and no network.

    python signed_url.py EMAIL BUCKET OBJECT [SOCKET [ENDPOINT]]
"""

import datetime
import sys

from google.cloud import storage
from google.oauth2 import service_account

from signet import SOCKET, Signer

email, bucket, name, *rest = sys.argv[1:]
socket = rest[0] if rest else SOCKET
endpoint = {"api_access_endpoint": rest[1]} if rest[1:] else {}
credentials = service_account.Credentials(Signer(email, socket), email, "https://oauth2.googleapis.com/token")
blob = storage.Client(project="-", credentials=credentials).bucket(bucket).blob(name)
print(blob.generate_signed_url(expiration=datetime.timedelta(minutes=15), version="v4", **endpoint))
