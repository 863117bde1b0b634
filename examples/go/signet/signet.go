// Package signet has signetd sign what Google's libraries want signed: the key stays in its TPM or PKCS#11 token.
package signet

import (
	"context"
	"encoding/json"
	"time"

	credentials "cloud.google.com/go/iam/credentials/apiv1"
	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	"golang.org/x/oauth2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Account is a service account at a signetd.
type Account struct {
	email  string
	client *credentials.IamCredentialsClient
}

// Connect finds the account of this email at the daemon of this socket.
func Connect(ctx context.Context, socket, email string) (*Account, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	client, err := credentials.NewIamCredentialsClient(ctx, option.WithGRPCConn(conn))
	return &Account{email, client}, err
}

// SignBytes is what storage.SignedURLOptions asks for.
func (a *Account) SignBytes(message []byte) ([]byte, error) {
	request := &credentialspb.SignBlobRequest{Name: a.name(), Payload: message}
	signed, err := a.client.SignBlob(context.Background(), request)
	return signed.GetSignedBlob(), err
}

// TokenSource gives JWT access tokens for one service, such as https://pubsub.googleapis.com/ with its final slash.
func (a *Account) TokenSource(audience string) oauth2.TokenSource {
	return oauth2.ReuseTokenSource(nil, source{a, audience})
}

type source struct {
	account  *Account
	audience string
}

func (s source) Token() (*oauth2.Token, error) {
	now := time.Now()
	expiry := now.Add(time.Hour)
	email := s.account.email
	claims, err := json.Marshal(map[string]any{
		"iss": email, "sub": email, "aud": s.audience, "iat": now.Unix(), "exp": expiry.Unix(),
	})
	if err != nil {
		return nil, err
	}
	request := &credentialspb.SignJwtRequest{Name: s.account.name(), Payload: string(claims)}
	signed, err := s.account.client.SignJwt(context.Background(), request)
	if err != nil {
		return nil, err
	}
	return &oauth2.Token{AccessToken: signed.SignedJwt, TokenType: "Bearer", Expiry: expiry}, nil
}

func (a *Account) name() string {
	return "projects/-/serviceAccounts/" + a.email
}
