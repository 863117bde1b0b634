// The API App: lets in who is on its access list, and proves it by a JWT.
//
//	api PORT AUDIENCE ACCESS
//
// ACCESS is a file: {"email of a caller": "URL of its certificates"}.
package main

import (
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func main() {
	port, app := os.Args[1], &apiApp{audience: os.Args[2], access: os.Args[3], known: map[string]*published{}}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("http://%s\n", listener.Addr())
	log.Fatal(http.Serve(listener, app))
}

type apiApp struct {
	audience, access string
	lock             sync.Mutex
	known            map[string]*published
}

// published is what stood at a URL.
type published struct {
	keys         map[string]*rsa.PublicKey
	until, again time.Time
}

func (a *apiApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status, answer := http.StatusOK, map[string]string{}
	token, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if email, err := a.verify(token); err == nil && isBearer {
		answer["hello"] = email
	} else {
		status, answer["error"] = http.StatusUnauthorized, fmt.Sprint(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer)
}

// verify returns the email of whoever signed the token.
func (a *apiApp) verify(text string) (string, error) {
	options := []jwt.ParserOption{
		jwt.WithValidMethods([]string{"RS256"}), jwt.WithAudience(a.audience), jwt.WithExpirationRequired(),
	}
	token, err := jwt.NewParser(options...).Parse(text, func(token *jwt.Token) (any, error) {
		issuer, err := token.Claims.GetIssuer()
		if err != nil {
			return nil, err
		}
		file, err := os.ReadFile(a.access)
		if err != nil {
			return nil, err
		}
		var access map[string]string
		if err := json.Unmarshal(file, &access); err != nil {
			return nil, err
		}
		url, listed := access[issuer]
		if !listed {
			return nil, fmt.Errorf("%s is not on the access list", issuer)
		}
		kid, _ := token.Header["kid"].(string)
		return a.key(url, kid)
	})
	if err != nil {
		return "", err
	}
	return token.Claims.GetIssuer()
}

// key finds a key at a URL, kept for as long as its Cache-Control says. One that is not there is looked for anew, once in a
// while: a caller may have a new key.
func (a *apiApp) key(url, kid string) (*rsa.PublicKey, error) {
	a.lock.Lock()
	defer a.lock.Unlock()
	now, kept := time.Now(), a.known[url]
	if kept == nil || now.After(kept.until) || (kept.keys[kid] == nil && now.After(kept.again)) {
		fresh, err := fetch(url, now)
		if err != nil {
			return nil, err
		}
		a.known[url], kept = fresh, fresh
	}
	if key := kept.keys[kid]; key != nil {
		return key, nil
	}
	return nil, fmt.Errorf("the key %q is not published", kid)
}

var maxAge = regexp.MustCompile(`max-age=(\d+)`)

func fetch(url string, now time.Time) (*published, error) {
	response, err := (&http.Client{Timeout: 5 * time.Second}).Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var certificates map[string]string
	if err := json.NewDecoder(response.Body).Decode(&certificates); err != nil {
		return nil, err
	}
	keys := map[string]*rsa.PublicKey{}
	for kid, pem := range certificates {
		if keys[kid], err = jwt.ParseRSAPublicKeyFromPEM([]byte(pem)); err != nil {
			return nil, err
		}
	}
	seconds := 0
	if found := maxAge.FindStringSubmatch(response.Header.Get("Cache-Control")); found != nil {
		seconds, _ = strconv.Atoi(found[1])
	}
	return &published{keys, now.Add(time.Duration(seconds) * time.Second), now.Add(time.Second)}, nil
}
