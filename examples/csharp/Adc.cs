using System;
using Google.Apis.Auth.OAuth2;
using Google.Apis.Http;

/// <summary>
/// Application default credentials, unchanged: what every Google library in .NET does by itself.
/// Not run with Google's library yet: see ../README.md.
/// <code>
/// eval "$(signetctl env)"
/// dotnet run -p:StartupObject=Adc -- https://pubsub.googleapis.com/v1/projects/PROJECT/topics
/// </code>
/// </summary>
public static class Adc
{
    public static void Main(string[] arguments)
    {
        var credential = GoogleCredential.GetApplicationDefault()
            .CreateScoped("https://www.googleapis.com/auth/cloud-platform");
        var wanted = new CreateHttpClientArgs { Initializers = { credential } };
        using (var client = new HttpClientFactory().CreateHttpClient(wanted))
        {
            Console.WriteLine(client.GetStringAsync(arguments[0]).GetAwaiter().GetResult());
        }
    }
}
