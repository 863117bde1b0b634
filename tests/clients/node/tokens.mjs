// google-auth-library, as tests/clients/README.md says.
import { Compute, GoogleAuth } from 'google-auth-library';
import { createInterface } from 'node:readline';

let last;

async function answer(verb, ...words) {
  if (verb === 'identity') {
    const client = await new GoogleAuth().getIdTokenClient(words[0]);
    return client.idTokenProvider.fetchIdToken(words[0]);
  }
  if (verb === 'access') {
    last = await new GoogleAuth({ scopes: words }).getClient();
  } else if (verb === 'account') {
    last = new Compute({ serviceAccountEmail: words[0], scopes: words.slice(1) });
  }
  return (await last.getAccessToken()).token;
}

for await (const line of createInterface({ input: process.stdin })) {
  const said = await answer(...line.split(' ')).then(
    (token) => ({ token }),
    (error) => ({ error: error.message }),
  );
  console.log(JSON.stringify(said));
}
