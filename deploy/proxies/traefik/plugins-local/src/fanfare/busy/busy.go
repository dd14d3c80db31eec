// Package busy answers every request as a Fanfare gateway that takes no streams now: with a reconnection
// time and the end of the stream.
package busy

import (
	"context"
	"fmt"
	"math/rand"
	"net/http"
	"net/url"
)

// What a gateway allows pages of other origins to set.
const allowedHeaders = "authorization,content-type,cache-control,last-event-id,idempotency-key,traceparent,x-requested-with,fanfare-busy"

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
		// A page that sets headers sends OPTIONS first. Without an answer to it the page gets no reconnection
		// time. Traefik has turned the method into GET.
		if request.Header.Get("Access-Control-Request-Method") != "" {
			headers.Set("Access-Control-Allow-Headers", allowedHeaders)
		}
	}
	message := "event: $busy\ndata: {}"
	// A comment is for readers that treat all data as their own.
	asked, err := url.Parse(request.URL.Query().Get("url"))
	if err == nil && asked.Query().Get("control") == "comment" {
		message = ": $busy"
	}
	// Drawn for each client, so that not all of them return together.
	fmt.Fprintf(response, "retry: %d\n%s\n\n", 10000+rand.Intn(20000), message)
}
