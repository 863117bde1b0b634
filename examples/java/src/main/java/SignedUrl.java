import com.google.auth.ServiceAccountSigner;
import com.google.cloud.NoCredentials;
import com.google.cloud.storage.BlobInfo;
import com.google.cloud.storage.Storage.SignUrlOption;
import com.google.cloud.storage.StorageOptions;
import com.google.gson.JsonParser;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.Base64;
import java.util.concurrent.TimeUnit;

/**
 * A Cloud Storage V4 signed URL, signed in the token. Needs the operation sign-blob, at best with
 * blob_prefixes = ["GOOG4-RSA-SHA256\n"], and no network.
 *
 * <pre>
 * eval "$(signetctl env)"
 * java -cp 'lib/*' src/main/java/SignedUrl.java EMAIL BUCKET OBJECT [HOST]
 * </pre>
 */
public final class SignedUrl {
  public static void main(String[] arguments) {
    var signer = new SignetSigner(arguments[0]);
    var storage =
        StorageOptions.newBuilder()
            .setProjectId("-")
            .setCredentials(NoCredentials.getInstance())
            .build()
            .getService();
    var blob = BlobInfo.newBuilder(arguments[1], arguments[2]).build();
    var host = SignUrlOption.withHostName(arguments.length > 3 ? arguments[3] : "https://storage.googleapis.com");
    System.out.println(
        storage.signUrl(
            blob,
            15,
            TimeUnit.MINUTES,
            SignUrlOption.signWith(signer),
            SignUrlOption.withV4Signature(),
            SignUrlOption.withPathStyle(),
            host));
  }

  /** Has signetd sign, at the HTTP address that `signetctl env` names. */
  record SignetSigner(String email) implements ServiceAccountSigner {
    @Override
    public String getAccount() {
      return email;
    }

    @Override
    public byte[] sign(byte[] message) {
      var host = System.getenv("GCE_METADATA_HOST");
      var uri = URI.create("http://" + host + "/v1/projects/-/serviceAccounts/" + email + ":signBlob");
      var body = "{\"payload\":\"" + Base64.getEncoder().encodeToString(message) + "\"}";
      var request =
          HttpRequest.newBuilder(uri)
              .header("Content-Type", "application/json")
              .header("Authorization", "Bearer any") // As Google's API wants one; here any will do.
              .POST(HttpRequest.BodyPublishers.ofString(body))
              .build();
      try {
        var response =
            HttpClient.newBuilder()
                .version(HttpClient.Version.HTTP_1_1)
                .build()
                .send(request, HttpResponse.BodyHandlers.ofString());
        if (response.statusCode() != 200) {
          throw new SigningException(response.body(), null);
        }
        var answer = JsonParser.parseString(response.body()).getAsJsonObject();
        return Base64.getDecoder().decode(answer.get("signedBlob").getAsString());
      } catch (java.io.IOException | InterruptedException cause) {
        throw new SigningException("signetd does not answer", cause);
      }
    }
  }
}
