// Google's Go client of the IAM Credentials API, unchanged, against signetd's unix socket.
//
// usage: iam SOCKET ACCOUNT UNIQUE_ID CERTIFICATE
package main

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"time"

	credentials "cloud.google.com/go/iam/credentials/apiv1"
	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func main() {
	socket, account, uniqueID, certificate := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	key := publicKey(certificate)
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(err)
	client, err := credentials.NewIamCredentialsClient(ctx, option.WithGRPCConn(conn))
	must(err)

	for _, named := range []string{account, uniqueID} {
		name := "projects/-/serviceAccounts/" + named
		blob := []byte("GOOG4-RSA-SHA256\n20261122T000000Z\nscope\nhash")
		signed, err := client.SignBlob(ctx, &credentialspb.SignBlobRequest{Name: name, Payload: blob})
		must(err)
		verify(key, blob, signed.SignedBlob)

		payload := `{"aud":"https://a.example/","n":[1]}`
		signedJwt, err := client.SignJwt(ctx, &credentialspb.SignJwtRequest{Name: name, Payload: payload})
		must(err)
		claims := claimsOf(key, signedJwt.SignedJwt)
		expect(claims["aud"] == "https://a.example/" && claims["exp"] != nil, claims)
		expect(signedJwt.KeyId == signed.KeyId && signed.KeyId != "", signedJwt.KeyId)

		token, err := client.GenerateAccessToken(ctx, &credentialspb.GenerateAccessTokenRequest{
			Name: name, Scope: []string{"s1", "s2"}, Lifetime: durationpb.New(10 * time.Minute),
		})
		must(err)
		claims = claimsOf(key, token.AccessToken)
		expect(claims["iss"] == account && claims["sub"] == account && claims["scope"] == "s1 s2", claims)
		expect(claims["exp"].(float64) == claims["iat"].(float64)+600, claims)
		expect(token.ExpireTime.Seconds == int64(claims["exp"].(float64)), token.ExpireTime)

		id, err := client.GenerateIdToken(ctx, &credentialspb.GenerateIdTokenRequest{
			Name: name, Audience: "https://internal.example/", IncludeEmail: true,
		})
		must(err)
		claims = claimsOf(key, id.Token)
		expect(claims["aud"] == "https://internal.example/" && claims["email"] == account, claims)
	}

	for name, code := range map[string]codes.Code{
		"projects/p/serviceAccounts/" + account: codes.InvalidArgument,
		account:                                 codes.InvalidArgument,
		"projects/-/serviceAccounts/forbidden@project.example": codes.PermissionDenied,
		"projects/-/serviceAccounts/unknown@project.example":   codes.PermissionDenied,
	} {
		_, err := client.SignBlob(ctx, &credentialspb.SignBlobRequest{Name: name, Payload: []byte("x")})
		expect(status.Code(err) == code, name, err)
	}
	name, delegates := "projects/-/serviceAccounts/"+account, []string{"projects/-/serviceAccounts/b@x"}
	_, err = client.SignJwt(ctx, &credentialspb.SignJwtRequest{Name: name, Delegates: delegates, Payload: "{}"})
	expect(status.Code(err) == codes.InvalidArgument, err)
	fmt.Println("ok")
}

func publicKey(certificate string) *rsa.PublicKey {
	text, err := os.ReadFile(certificate)
	must(err)
	block, _ := pem.Decode(text)
	parsed, err := x509.ParseCertificate(block.Bytes)
	must(err)
	return parsed.PublicKey.(*rsa.PublicKey)
}

func verify(key *rsa.PublicKey, message, signature []byte) {
	digest := sha256.Sum256(message)
	must(rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature))
}

func claimsOf(key *rsa.PublicKey, jwt string) map[string]any {
	end := strings.LastIndexByte(jwt, '.')
	signature, err := base64.RawURLEncoding.DecodeString(jwt[end+1:])
	must(err)
	verify(key, []byte(jwt[:end]), signature)
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(jwt, ".")[1])
	must(err)
	var claims map[string]any
	must(json.Unmarshal(payload, &claims))
	return claims
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func expect(holds bool, seen ...any) {
	if !holds {
		panic(fmt.Sprint(seen...))
	}
}
