// cloud.google.com/go/auth, as tests/clients/README.md says; another account by golang.org/x/oauth2/google.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/credentials/idtoken"
	"golang.org/x/oauth2/google"
)

func main() {
	var last *auth.Credentials
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		token, err := answer(&last, words[0], words[1:])
		said := map[string]string{"token": token}
		if err != nil {
			said = map[string]string{"error": err.Error()}
		}
		text, _ := json.Marshal(said)
		fmt.Println(string(text))
	}
}

func answer(last **auth.Credentials, verb string, arguments []string) (string, error) {
	var err error
	switch verb {
	case "access":
		*last, err = credentials.DetectDefault(&credentials.DetectOptions{Scopes: arguments})
	case "identity":
		*last, err = idtoken.NewCredentials(&idtoken.Options{Audience: arguments[0]})
	case "account":
		token, err := google.ComputeTokenSource(arguments[0], arguments[1:]...).Token()
		if err != nil {
			return "", err
		}
		return token.AccessToken, nil
	}
	if err != nil {
		return "", err
	}
	token, err := (*last).Token(context.Background())
	if err != nil {
		return "", err
	}
	return token.Value, nil
}
