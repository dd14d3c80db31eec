// Package busy answers every request as a Fanfare gateway that takes no streams now: with a reconnection
// time and the end of the stream.
package busy

import (
	"context"
	"fmt"
	"math/rand"
	"net/http"
)

// Config lists the origins whose pages may read the answer.
type Config struct {
	Origins []string `json:"origins,omitempty"`
}

// CreateConfig is called by Traefik before it fills in the configuration.
func CreateConfig() *Config {
	return &Config{}
}

type answer struct {
	origins map[string]bool
}

// New is called by Traefik. There is no next handler: the answer is made here.
func New(_ context.Context, _ http.Handler, config *Config, _ string) (http.Handler, error) {
	origins := make(map[string]bool)
	for _, origin := range config.Origins {
		origins[origin] = true
	}
	return &answer{origins: origins}, nil
}

func (a *answer) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	headers := response.Header()
	headers.Set("Content-Type", "text/event-stream; charset=utf-8")
	headers.Set("Cache-Control", "no-store, no-transform")
	headers.Set("Vary", "Origin")
	if origin := request.Header.Get("Origin"); a.origins[origin] {
		headers.Set("Access-Control-Allow-Origin", origin)
		headers.Set("Access-Control-Allow-Credentials", "true")
	}
	// Drawn for each client, so that not all of them return together.
	fmt.Fprintf(response, "retry: %d\nevent: $busy\ndata: {}\n\n", 10000+rand.Intn(20000))
}
