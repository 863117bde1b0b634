// Not Google's: as much of Google.Apis.Auth and Google.Apis.Core as examples/csharp uses, written after their documentation
// and sources, for there is no .NET here but Mono. It asks the metadata server in the order in which the library does, and
// lets a credential intercept each request.

using System;
using System.Collections.Generic;
using System.Linq;
using System.Net.Http;
using System.Net.Http.Headers;
using System.Threading;
using System.Threading.Tasks;
using Newtonsoft.Json.Linq;

namespace Google.Apis.Http
{
    public interface IHttpExecuteInterceptor
    {
        Task InterceptAsync(HttpRequestMessage request, CancellationToken cancellation);
    }

    public interface IConfigurableHttpClientInitializer
    {
        void Initialize(ConfigurableHttpClient client);
    }

    public class ConfigurableMessageHandler : DelegatingHandler
    {
        public ConfigurableMessageHandler() : base(new HttpClientHandler { UseProxy = false })
        {
        }

        public IHttpExecuteInterceptor Credential { get; set; }

        protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellation)
        {
            await Credential.InterceptAsync(request, cancellation);
            return await base.SendAsync(request, cancellation);
        }
    }

    public class ConfigurableHttpClient : HttpClient
    {
        public ConfigurableHttpClient(ConfigurableMessageHandler handler) : base(handler)
        {
            MessageHandler = handler;
        }

        public ConfigurableMessageHandler MessageHandler { get; }
    }

    public class CreateHttpClientArgs
    {
        public IList<IConfigurableHttpClientInitializer> Initializers { get; } =
            new List<IConfigurableHttpClientInitializer>();
    }

    public class HttpClientFactory
    {
        public ConfigurableHttpClient CreateHttpClient(CreateHttpClientArgs wanted)
        {
            var client = new ConfigurableHttpClient(new ConfigurableMessageHandler());
            foreach (var initializer in wanted.Initializers)
            {
                initializer.Initialize(client);
            }
            return client;
        }
    }
}

namespace Google.Apis.Auth.OAuth2
{
    using Google.Apis.Http;

    public interface ITokenAccess
    {
        Task<string> GetAccessTokenForRequestAsync(
            string authUri = null, CancellationToken cancellation = default(CancellationToken));
    }

    public interface ICredential : IConfigurableHttpClientInitializer, ITokenAccess
    {
    }

    public class GoogleCredential : ICredential, IHttpExecuteInterceptor
    {
        private static readonly HttpClient Metadata = new HttpClient(new HttpClientHandler { UseProxy = false });
        private readonly string _scopes;

        private GoogleCredential(string scopes)
        {
            _scopes = scopes;
        }

        public static GoogleCredential GetApplicationDefault()
        {
            var answer = AskAsync("").GetAwaiter().GetResult();
            IEnumerable<string> flavor;
            if (!answer.Headers.TryGetValues("Metadata-Flavor", out flavor) || !flavor.Contains("Google"))
            {
                throw new InvalidOperationException("The Application Default Credentials are not available.");
            }
            return new GoogleCredential(null);
        }

        public GoogleCredential CreateScoped(params string[] scopes)
        {
            return new GoogleCredential(string.Join(",", scopes));
        }

        public async Task<string> GetAccessTokenForRequestAsync(
            string authUri = null, CancellationToken cancellation = default(CancellationToken))
        {
            var answer = await AskAsync("/computeMetadata/v1/instance/service-accounts/default/token?scopes=" + _scopes);
            return (string)JObject.Parse(await answer.EnsureSuccessStatusCode().Content.ReadAsStringAsync())["access_token"];
        }

        public void Initialize(ConfigurableHttpClient client)
        {
            client.MessageHandler.Credential = this;
        }

        public async Task InterceptAsync(HttpRequestMessage request, CancellationToken cancellation)
        {
            var token = await GetAccessTokenForRequestAsync(null, cancellation);
            request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", token);
        }

        private static Task<HttpResponseMessage> AskAsync(string path)
        {
            var url = "http://" + Environment.GetEnvironmentVariable("GCE_METADATA_HOST") + path;
            var request = new HttpRequestMessage(HttpMethod.Get, url);
            request.Headers.Add("Metadata-Flavor", "Google");
            return Metadata.SendAsync(request);
        }
    }
}
