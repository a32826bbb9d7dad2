// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"encoding/json"
	"net/http"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// written is a request in a file.
type written struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	// Body is text, or any other value, which is sent as JSON.
	Body json.RawMessage `json:"body"`
}

// ParseRequests reads a file of requests: a list in YAML or JSON, whose elements
// are "URL", "METHOD URL", or objects with url, method, headers and body.
func ParseRequests(text string) ([]exchange.Request, error) {
	var list []json.RawMessage
	if err := yaml.UnmarshalStrict([]byte(text), &list); err != nil {
		return nil, task.Usagef("the requests are no list in YAML or JSON: write each as \"- URL\", \"- METHOD URL\", or an object with url, method, headers and body: %v", err)
	}
	if len(list) == 0 {
		return nil, task.Usagef("there are no requests: write a list of URLs, or of objects with url, method, headers and body")
	}
	var all []exchange.Request
	for i, raw := range list {
		r, err := parseRequest(raw)
		if err != nil {
			return nil, task.Usagef("request %d: %v", i+1, err)
		}
		all = append(all, r)
	}
	return all, nil
}

func parseRequest(raw json.RawMessage) (exchange.Request, error) {
	var line string
	if json.Unmarshal(raw, &line) == nil {
		fields := strings.Fields(line)
		switch len(fields) {
		case 1:
			return exchange.Request{URL: fields[0]}, nil
		case 2:
			return exchange.Request{Method: fields[0], URL: fields[1]}, nil
		}
		return exchange.Request{}, task.Usagef("%q is neither URL nor METHOD URL", line)
	}
	var w written
	if err := yaml.UnmarshalStrict(raw, &w); err != nil {
		return exchange.Request{}, err
	}
	if w.URL == "" {
		return exchange.Request{}, task.Usagef("url is missing")
	}
	r := exchange.Request{Method: strings.ToUpper(w.Method), URL: w.URL, Header: http.Header{}}
	for name, value := range w.Headers {
		r.Header.Set(name, value)
	}
	var body string
	switch {
	case len(w.Body) == 0 || string(w.Body) == "null":
	case json.Unmarshal(w.Body, &body) == nil:
		r.Body = []byte(body)
	default:
		r.Body = w.Body
		if r.Header.Get("Content-Type") == "" {
			r.Header.Set("Content-Type", "application/json")
		}
	}
	return r, nil
}
