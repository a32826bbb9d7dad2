// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// tool is one that models are offered.
type tool struct {
	name string
	// step is what it is in the loop, where it is a part of that.
	step string
	add  func(*Server)
}

// reply is what a tool gives back: the fields are the structured content.
type reply interface {
	// text is the same for whoever reads no structured content.
	text() string
}

// kind is what a tool does to the world.
type kind int

const (
	// reads changes nothing.
	reads kind = iota
	// adds makes what was not there, and changes only what the caller has made.
	adds
	// destroys takes away what is there.
	destroys
	// acts has effects that depend on whom it reaches.
	acts
)

func (k kind) annotations(title string) *mcp.ToolAnnotations {
	no, yes := false, true
	a := &mcp.ToolAnnotations{Title: title, DestructiveHint: &no, OpenWorldHint: &no}
	switch k {
	case reads:
		a.ReadOnlyHint, a.IdempotentHint = true, true
	case adds:
	case destroys:
		a.DestructiveHint, a.IdempotentHint = &yes, true
	case acts:
		a.DestructiveHint, a.OpenWorldHint = &yes, &yes
	}
	return a
}

// call is one call of a tool, and what it does its task with.
type call struct {
	*cluster.Cluster
	server   *Server
	progress task.Progress
	// secrets are the routing keys that the call has come across, which its reply does
	// not tell.
	secrets *[]string
}

// sandbox reads the sandbox of a handle.
func (c call) sandbox(ctx context.Context, text string) (*v1alpha1.Sandbox, error) {
	namespace, name, err := parseHandle(text)
	if err != nil {
		return nil, err
	}
	sb, err := sandbox.Get(ctx, c.Cluster, namespace, name)
	c.hide(sb)
	return sb, err
}

// waits is an input that says how long its call may wait.
type waits interface{ wait() time.Duration }

// define makes a tool. tune says more about the input's properties than Go's types
// do. Both types are structs, the second by its pointer.
func define[In any, Out reply](name, title, step, description string, k kind, tune func(properties), run func(context.Context, call, In) (Out, error)) tool {
	return tool{name: name, step: step, add: func(s *Server) {
		in, out := schemaOf[In](), schemaOf[Out]()
		if tune != nil {
			tune(in.Properties)
		}
		mcp.AddTool(s.server, &mcp.Tool{
			Name: name, Title: title, Description: description, Annotations: k.annotations(title), InputSchema: in, OutputSchema: out,
		}, func(ctx context.Context, req *mcp.CallToolRequest, input In) (*mcp.CallToolResult, any, error) {
			limit := patience
			if w, ok := any(input).(waits); ok {
				limit += w.wait()
			}
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			c := call{server: s, secrets: &[]string{}}
			var end func()
			c.progress, end = progressOf(ctx, req, s.beat)
			defer end()
			var err error
			if c.Cluster, err = s.reach(); err != nil {
				return nil, nil, &toolError{name, err, c.redact}
			}
			output, err := run(ctx, c, input)
			if err != nil {
				return nil, nil, &toolError{name, err, c.redact}
			}
			structured, err := json.Marshal(output)
			if err != nil {
				return nil, nil, fmt.Errorf("write the reply: %w", err)
			}
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: c.redact(output.text())}}}, json.RawMessage(c.redact(string(structured))), nil
		})
	}}
}

type properties = map[string]*jsonschema.Schema

// schemaOf is the schema of a struct. Lists are lists: null, which stands for an
// empty one in Go, is nothing that a model has to know of.
func schemaOf[T any]() *jsonschema.Schema {
	s, err := jsonschema.For[T](nil)
	if err != nil {
		panic(err) // A type of this package is no struct.
	}
	withoutNull(s)
	return s
}

func withoutNull(s *jsonschema.Schema) {
	if s == nil {
		return
	}
	if len(s.Types) == 2 && s.Types[0] == "null" {
		s.Type, s.Types = s.Types[1], nil
	}
	for _, p := range s.Properties {
		withoutNull(p)
	}
	withoutNull(s.Items)
	withoutNull(s.AdditionalProperties)
}

// oneOf restricts a property to words, of which the first is the default.
func oneOf(s *jsonschema.Schema, words ...string) {
	for _, w := range words {
		s.Enum = append(s.Enum, w)
	}
	s.Default = []byte(fmt.Sprintf("%q", words[0]))
}

// between bounds a number and gives its default.
func between(s *jsonschema.Schema, least, most, usual int) {
	low, high := float64(least), float64(most)
	s.Minimum, s.Maximum, s.Default = &low, &high, []byte(fmt.Sprint(usual))
}

// detail is how much of a reply is wanted.
type detail string

const (
	short detail = "short"
	full  detail = "full"
)

func tuneDetail(p properties) { oneOf(p["detail"], string(short), string(full)) }
