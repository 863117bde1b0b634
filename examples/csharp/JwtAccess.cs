using System;
using System.Net.Http;
using System.Net.Http.Headers;
using System.Text;
using System.Threading;
using System.Threading.Tasks;
using Google.Apis.Auth.OAuth2;
using Google.Apis.Http;
using Newtonsoft.Json.Linq;

/// <summary>
/// A JWT access token for one service, attached to each request by the library. Needs the operation sign-jwt for that
/// audience.
/// Not run with Google's library yet: see ../README.md.
/// <code>
/// eval "$(signetctl env)"
/// dotnet run -p:StartupObject=JwtAccess -- EMAIL https://pubsub.googleapis.com/ \
///     https://pubsub.googleapis.com/v1/projects/PROJECT/topics
/// </code>
/// </summary>
public static class JwtAccess
{
    public static void Main(string[] arguments)
    {
        var credential = new SignetCredential(arguments[0], arguments[1]);
        var wanted = new CreateHttpClientArgs { Initializers = { credential } };
        using (var client = new HttpClientFactory().CreateHttpClient(wanted))
        {
            Console.WriteLine(client.GetStringAsync(arguments[2]).GetAwaiter().GetResult());
        }
    }
}

/// <summary>
/// What Google's libraries take for a credential: REST ones as HttpClientInitializer, gRPC ones as the Credential of a
/// client's builder. signetd signs, at the HTTP address that `signetctl env` names.
/// </summary>
public sealed class SignetCredential : ICredential, IHttpExecuteInterceptor
{
    private static readonly HttpClient Signetd = new HttpClient();
    private readonly SemaphoreSlim _one = new SemaphoreSlim(1);
    private readonly string _email;
    private readonly string _audience;
    private string _token;
    private long _expires;

    public SignetCredential(string email, string audience)
    {
        _email = email;
        _audience = audience;
    }

    public async Task<string> GetAccessTokenForRequestAsync(
        string authUri = null, CancellationToken cancellation = default(CancellationToken))
    {
        await _one.WaitAsync(cancellation).ConfigureAwait(false);
        try
        {
            var now = DateTimeOffset.UtcNow.ToUnixTimeSeconds();
            if (_expires < now + 300)
            {
                _token = await SignAsync(now, cancellation).ConfigureAwait(false);
                _expires = now + 3600;
            }
            return _token;
        }
        finally
        {
            _one.Release();
        }
    }

    public void Initialize(ConfigurableHttpClient client)
    {
        client.MessageHandler.Credential = this;
    }

    public async Task InterceptAsync(HttpRequestMessage request, CancellationToken cancellation)
    {
        var token = await GetAccessTokenForRequestAsync(null, cancellation).ConfigureAwait(false);
        request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", token);
    }

    private async Task<string> SignAsync(long now, CancellationToken cancellation)
    {
        var claims = new JObject
        {
            ["iss"] = _email, ["sub"] = _email, ["aud"] = _audience, ["iat"] = now, ["exp"] = now + 3600,
        };
        var host = Environment.GetEnvironmentVariable("GCE_METADATA_HOST");
        var url = $"http://{host}/v1/projects/-/serviceAccounts/{_email}:signJwt";
        var body = new JObject { ["payload"] = claims.ToString() }.ToString();
        var signing = new HttpRequestMessage(HttpMethod.Post, url);
        signing.Content = new StringContent(body, Encoding.UTF8, "application/json");
        // As Google's API wants one; here any will do.
        signing.Headers.Authorization = new AuthenticationHeaderValue("Bearer", "any");
        using (var response = await Signetd.SendAsync(signing, cancellation).ConfigureAwait(false))
        {
            var answer = await response.Content.ReadAsStringAsync().ConfigureAwait(false);
            if (!response.IsSuccessStatusCode)
            {
                throw new HttpRequestException(answer);
            }
            return (string)JObject.Parse(answer)["signedJwt"];
        }
    }
}
