import com.google.api.client.json.gson.GsonFactory;
import com.google.api.client.json.webtoken.JsonWebSignature;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.sun.net.httpserver.HttpServer;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.PublicKey;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import java.time.Instant;
import java.util.HashMap;
import java.util.Map;
import java.util.regex.Pattern;

/**
 * The API App: lets in who is on its access list, and proves it by a JWT.
 *
 * <pre>java -cp 'lib/*' ApiApp.java PORT AUDIENCE ACCESS</pre>
 *
 * ACCESS is a file: {"email of a caller": "URL of its certificates"}.
 */
public final class ApiApp {
  private static final HttpClient CLIENT = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
  private static final Pattern MAX_AGE = Pattern.compile("max-age=(\\d+)");
  private static final Map<String, Published> KNOWN = new HashMap<>();

  /** What stood at a URL. */
  private record Published(Map<String, PublicKey> keys, Instant until, Instant again) {}

  public static void main(String[] arguments) throws IOException {
    var server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])), 0);
    server.createContext(
        "/",
        exchange -> {
          var answer = new JsonObject();
          var status = 200;
          try {
            var header = exchange.getRequestHeaders().getFirst("Authorization");
            if (header == null || !header.startsWith("Bearer ")) {
              throw new GeneralSecurityException("no bearer token");
            }
            answer.addProperty("hello", verify(header.substring(7), arguments[1], Path.of(arguments[2])));
          } catch (GeneralSecurityException | IOException | IllegalArgumentException refusal) {
            status = 401;
            answer.addProperty("error", refusal.getMessage());
          }
          var body = answer.toString().getBytes();
          exchange.getResponseHeaders().set("Content-Type", "application/json");
          exchange.sendResponseHeaders(status, body.length);
          exchange.getResponseBody().write(body);
          exchange.close();
        });
    server.start();
    System.out.println("http://127.0.0.1:" + server.getAddress().getPort());
  }

  /** The email of whoever signed the token. */
  private static synchronized String verify(String text, String audience, Path access)
      throws GeneralSecurityException, IOException {
    var token = JsonWebSignature.parse(GsonFactory.getDefaultInstance(), text);
    var issuer = token.getPayload().getIssuer();
    var url = JsonParser.parseString(Files.readString(access)).getAsJsonObject().get(issuer);
    if (url == null) {
      throw new GeneralSecurityException(issuer + " is not on the access list");
    }
    if (!"RS256".equals(token.getHeader().getAlgorithm())
        || !token.verifySignature(key(url.getAsString(), token.getHeader().getKeyId()))) {
      throw new GeneralSecurityException("the signature is wrong");
    }
    var expires = token.getPayload().getExpirationTimeSeconds();
    if (expires == null || Instant.now().getEpochSecond() >= expires) {
      throw new GeneralSecurityException("the token has expired");
    }
    if (!token.getPayload().getAudienceAsList().contains(audience)) {
      throw new GeneralSecurityException("the audience is another");
    }
    return issuer;
  }

  /**
   * A key at a URL, kept for as long as its Cache-Control says. One that is not there is looked for anew, once in a while: a
   * caller may have a new key.
   */
  private static PublicKey key(String url, String kid) throws GeneralSecurityException, IOException {
    var now = Instant.now();
    var kept = KNOWN.get(url);
    if (kept == null || now.isAfter(kept.until) || (!kept.keys.containsKey(kid) && now.isAfter(kept.again))) {
      kept = fetch(url, now);
      KNOWN.put(url, kept);
    }
    var key = kept.keys.get(kid);
    if (key == null) {
      throw new GeneralSecurityException("the key " + kid + " is not published");
    }
    return key;
  }

  private static Published fetch(String url, Instant now) throws GeneralSecurityException, IOException {
    HttpResponse<String> answer;
    try {
      var request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(5)).build();
      answer = CLIENT.send(request, HttpResponse.BodyHandlers.ofString());
    } catch (InterruptedException interrupted) {
      throw new IOException(interrupted);
    }
    var keys = new HashMap<String, PublicKey>();
    for (var entry : JsonParser.parseString(answer.body()).getAsJsonObject().entrySet()) {
      var pem = new ByteArrayInputStream(entry.getValue().getAsString().getBytes());
      keys.put(entry.getKey(), CertificateFactory.getInstance("X.509").generateCertificate(pem).getPublicKey());
    }
    var age = MAX_AGE.matcher(answer.headers().firstValue("Cache-Control").orElse(""));
    return new Published(keys, now.plusSeconds(age.find() ? Long.parseLong(age.group(1)) : 0), now.plusSeconds(1));
  }
}
