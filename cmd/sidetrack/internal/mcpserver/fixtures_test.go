// SPDX-License-Identifier: Apache-2.0

//lint:file-ignore SA1019 the suite tries what versions before 2026-07-28 have: logging, sampling and roots

package mcpserver

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// What the conformance suite's scenarios call by name. The suite describes each; none
// of it is Sidetrack's.

// fixtureOptions has a server offer what the suite asks for beside tools.
func fixtureOptions(o *mcp.ServerOptions) {
	o.Capabilities = &mcp.ServerCapabilities{
		Logging: &mcp.LoggingCapabilities{}, Completions: &mcp.CompletionCapabilities{},
		Tools: &mcp.ToolCapabilities{ListChanged: true}, Prompts: &mcp.PromptCapabilities{ListChanged: true},
		Resources: &mcp.ResourceCapabilities{ListChanged: true, Subscribe: true},
	}
	o.CompletionHandler = func(_ context.Context, r *mcp.CompleteRequest) (*mcp.CompleteResult, error) {
		return &mcp.CompleteResult{Completion: mcp.CompletionResultDetails{Values: []string{r.Params.Argument.Value + "-1"}, Total: 1}}, nil
	}
	o.SubscribeHandler = func(context.Context, *mcp.SubscribeRequest) error { return nil }
	o.UnsubscribeHandler = func(context.Context, *mcp.UnsubscribeRequest) error { return nil }
}

// addFixtures adds all tools, resources and prompts.
func addFixtures(t *testing.T, s *mcp.Server) {
	t.Helper()
	addContents(s)
	addConversations(s)
	addSchemas(s)
	addQuestions(t, s)
	addChanges(s)
	addResources(s)
	addPrompts(s)
}

type nothing struct{}

// addTool adds a tool that takes nothing.
func addTool(s *mcp.Server, name string, run func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error)) {
	mcp.AddTool(s, &mcp.Tool{Name: name, Description: "Fixture of the conformance suite."},
		func(ctx context.Context, r *mcp.CallToolRequest, _ nothing) (*mcp.CallToolResult, any, error) {
			result, err := run(ctx, r)
			return result, nil, err
		})
}

func saying(content ...mcp.Content) *mcp.CallToolResult { return &mcp.CallToolResult{Content: content} }

func text(format string, a ...any) mcp.Content {
	return &mcp.TextContent{Text: fmt.Sprintf(format, a...)}
}

// The suite looks at types and not into them.
func image() mcp.Content {
	return &mcp.ImageContent{MIMEType: "image/png", Data: []byte("\x89PNG\r\n\x1a\n")}
}

func embedded(uri string) mcp.Content {
	return &mcp.EmbeddedResource{Resource: &mcp.ResourceContents{URI: uri, MIMEType: "text/plain", Text: "embedded"}}
}

// addContents adds tools that reply with each kind of content.
func addContents(s *mcp.Server) {
	for name, content := range map[string][]mcp.Content{
		"test_simple_text":            {text("simple")},
		"test_image_content":          {image()},
		"test_audio_content":          {&mcp.AudioContent{MIMEType: "audio/wav", Data: []byte("RIFF\x04\x00\x00\x00WAVE")}},
		"test_embedded_resource":      {embedded("test://embedded-resource")},
		"test_multiple_content_types": {text("several"), image(), embedded("test://mixed-content-resource")},
	} {
		addTool(s, name, func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return saying(content...), nil
		})
	}
	addTool(s, "test_error_handling", func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return nil, errors.New("this fails always")
	})
}

// addConversations adds tools that talk with the client while they run.
func addConversations(s *mcp.Server) {
	addTool(s, "test_tool_with_logging", func(ctx context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		for _, stage := range []string{"started", "works", "completed"} {
			if err := r.Session.Log(ctx, &mcp.LoggingMessageParams{Level: "info", Logger: "fixtures", Data: stage}); err != nil {
				return nil, err
			}
		}
		return saying(text("logged")), nil
	})
	addTool(s, "test_logging_tool", func(ctx context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		// The client has not asked for it: it is not to arrive.
		return saying(text("logged")), r.Session.Log(ctx, &mcp.LoggingMessageParams{Level: "info", Data: "unwanted"})
	})
	addTool(s, "test_tool_with_progress", func(ctx context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		token := r.Params.GetProgressToken()
		for _, n := range []float64{0, 50, 100} {
			if token == nil {
				break
			}
			if err := r.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: token, Progress: n, Total: 100}); err != nil {
				return nil, err
			}
		}
		return saying(text("%v", token)), nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "test_sampling", Description: "Fixture of the conformance suite."},
		func(ctx context.Context, r *mcp.CallToolRequest, in struct {
			Prompt string `json:"prompt"`
		}) (*mcp.CallToolResult, any, error) {
			got, err := r.Session.CreateMessage(ctx, sampling(in.Prompt))
			if err != nil {
				return nil, nil, err
			}
			return saying(got.Content), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "test_elicitation", Description: "Fixture of the conformance suite."},
		func(ctx context.Context, r *mcp.CallToolRequest, in struct {
			Message string `json:"message"`
		}) (*mcp.CallToolResult, any, error) {
			result, err := elicit(ctx, r, asking(in.Message, object{"username": object{"type": "string"}, "email": object{"type": "string"}}))
			return result, nil, err
		})
	for name, properties := range map[string]object{"test_elicitation_sep1034_defaults": defaults, "test_elicitation_sep1330_enums": enums} {
		addTool(s, name, func(ctx context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return elicit(ctx, r, asking("Please fill this in", properties))
		})
	}
	// Its stream is to have nothing but notifications and the result.
	addTool(s, "test_streaming_elicitation", func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return saying(text("no request of the server's own")), nil
	})
	addTool(s, "test_reconnection", func(_ context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		if r.Extra != nil && r.Extra.CloseSSEStream != nil {
			r.Extra.CloseSSEStream(mcp.CloseSSEStreamArgs{RetryAfter: 10 * time.Millisecond})
		}
		return saying(text("said after the stream was closed")), nil
	})
}

type object = map[string]any

func sampling(prompt string) *mcp.CreateMessageParams {
	return &mcp.CreateMessageParams{MaxTokens: 100, Messages: []*mcp.SamplingMessage{{Role: "user", Content: text("%s", prompt)}}}
}

func asking(message string, properties object) *mcp.ElicitParams {
	return &mcp.ElicitParams{Message: message, RequestedSchema: object{"type": "object", "properties": properties}}
}

func elicit(ctx context.Context, r *mcp.CallToolRequest, p *mcp.ElicitParams) (*mcp.CallToolResult, error) {
	got, err := r.Session.Elicit(ctx, p)
	if err != nil {
		return nil, err
	}
	return saying(text("%s: %v", got.Action, got.Content)), nil
}

var (
	defaults = object{
		"name":     object{"type": "string", "default": "John Doe"},
		"age":      object{"type": "integer", "default": 30},
		"score":    object{"type": "number", "default": 95.5},
		"status":   object{"type": "string", "enum": []string{"active", "inactive", "pending"}, "default": "active"},
		"verified": object{"type": "boolean", "default": true},
	}
	titled = []object{{"const": "value1", "title": "One"}, {"const": "value2", "title": "Two"}, {"const": "value3", "title": "Three"}}
	plain  = []string{"option1", "option2", "option3"}
	enums  = object{
		"untitledSingle": object{"type": "string", "enum": plain},
		"titledSingle":   object{"type": "string", "oneOf": titled},
		"legacyEnum":     object{"type": "string", "enum": []string{"opt1", "opt2", "opt3"}, "enumNames": []string{"One", "Two", "Three"}},
		"untitledMulti":  object{"type": "array", "items": object{"type": "string", "enum": plain}},
		"titledMulti":    object{"type": "array", "items": object{"anyOf": titled}},
	}
)

// addSchemas adds tools whose input schemas are to arrive as they are.
func addSchemas(s *mcp.Server) {
	address := object{"type": "object", "$anchor": "addressDef", "properties": object{"street": object{"type": "string"}, "city": object{"type": "string"}}}
	for name, schema := range map[string]object{
		"json_schema_2020_12_tool": {
			"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "additionalProperties": false, "$defs": object{"address": address},
			"properties": object{
				"name": object{"type": "string"}, "address": object{"$ref": "#/$defs/address"}, "phone": object{"type": "string"}, "email": object{"type": "string"},
				"contactMethod": object{"type": "string", "enum": []string{"phone", "email"}},
			},
			"allOf": []object{{"anyOf": []object{{"required": []string{"phone"}}, {"required": []string{"email"}}}}},
			"if":    object{"required": []string{"contactMethod"}, "properties": object{"contactMethod": object{"const": "phone"}}},
			"then":  object{"required": []string{"phone"}},
			"else":  object{"required": []string{"email"}},
		},
		"test_x_mcp_header": {"type": "object", "properties": object{"region": object{"type": "string", "x-mcp-header": "Region"}}},
	} {
		s.AddTool(&mcp.Tool{Name: name, Description: "Fixture of the conformance suite.", InputSchema: schema},
			func(_ context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
				return saying(text("%s", r.Params.Arguments)), nil
			})
	}
}

// rounds are what a tool asks the client for, one after the other, before it replies
// (versions from 2026-07-28 on).
type rounds []mcp.InputRequestMap

// signingKey proves that a state is one of ours.
var signingKey = []byte("a key of the tests")

func signed(state string) string {
	h := hmac.New(sha256.New, signingKey)
	h.Write([]byte(state))
	return state + "." + hex.EncodeToString(h.Sum(nil))
}

// next is what to ask for now, given what the client has answered; nil when it is all
// answered.
func (r rounds) next(state string, answers mcp.InputResponseMap) (mcp.InputRequestMap, string, error) {
	n := 0
	if state != "" {
		for n < len(r) && state != signed(fmt.Sprint(n)) {
			n++
		}
		if n == len(r) {
			return nil, "", &jsonrpc.Error{Code: jsonrpc.CodeInvalidParams, Message: "the requestState is not one of this server's"}
		}
	}
	for name := range r[n] {
		if !answered(answers[name]) {
			return r[n], signed(fmt.Sprint(n)), nil
		}
	}
	if n++; n < len(r) {
		return r[n], signed(fmt.Sprint(n)), nil
	}
	return nil, "", nil
}

func answered(a mcp.InputResponse) bool {
	if e, ok := a.(*mcp.ElicitResult); ok {
		return e.Action == "accept"
	}
	return a != nil
}

// addQuestions adds tools that ask by their results.
func addQuestions(t *testing.T, s *mcp.Server) {
	t.Helper()
	name := asking("What is your name?", object{"name": object{"type": "string"}})
	confirm := mcp.InputRequestMap{"confirm": asking("Please confirm", object{"ok": object{"type": "boolean"}})}
	for tool, all := range map[string]rounds{
		"elicitation":    {{"user_name": name}},
		"sampling":       {{"capital_question": sampling("What is the capital of France?")}},
		"list_roots":     {{"client_roots": &mcp.ListRootsParams{}}},
		"request_state":  {confirm},
		"tampered_state": {confirm},
		"multi_round":    {{"step1": name}, {"step2": asking("Which colour?", object{"color": object{"type": "string"}})}},
		"multiple_inputs": {{
			"user_name": name, "greeting": sampling("Generate a greeting"), "client_roots": &mcp.ListRootsParams{},
		}},
	} {
		addTool(s, "test_input_required_result_"+tool, func(_ context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			ask, state, err := all.next(r.Params.RequestState, r.Params.InputResponses)
			if err != nil || ask != nil {
				return &mcp.CallToolResult{InputRequests: ask, RequestState: state}, err
			}
			return saying(text("state-ok: %d answers", len(r.Params.InputResponses))), nil
		})
	}
	s.AddPrompt(&mcp.Prompt{Name: "test_input_required_result_prompt", Description: "Fixture of the conformance suite."}, func(_ context.Context, r *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
		all := rounds{{"user_context": asking("Which context?", object{"context": object{"type": "string"}})}}
		ask, state, err := all.next(r.Params.RequestState, r.Params.InputResponses)
		if err != nil || ask != nil {
			return &mcp.GetPromptResult{InputRequests: ask, RequestState: state}, err
		}
		return &mcp.GetPromptResult{Messages: []*mcp.PromptMessage{{Role: "user", Content: text("asked")}}}, nil
	})
	// These look at what the client can do.
	addTool(s, "test_input_required_result_capabilities", func(_ context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		ask := mcp.InputRequestMap{}
		if can := r.ClientCapabilities(); can != nil && can.Sampling != nil {
			ask["greeting"] = sampling("Generate a greeting")
		} else if can != nil && can.Elicitation != nil {
			ask["user_name"] = name
		}
		if len(ask) == 0 || len(r.Params.InputResponses) > 0 {
			return saying(text("nothing to ask for")), nil
		}
		return &mcp.CallToolResult{InputRequests: ask}, nil
	})
	missing, err := json.Marshal(mcp.MissingRequiredClientCapabilityData{RequiredCapabilities: &mcp.ClientCapabilities{Sampling: &mcp.SamplingCapabilities{}}})
	if err != nil {
		t.Fatal(err)
	}
	addTool(s, "test_missing_capability", func(_ context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		if can := r.ClientCapabilities(); can == nil || can.Sampling == nil {
			return nil, &jsonrpc.Error{Code: mcp.CodeMissingRequiredClientCapabilities, Message: "sampling is needed", Data: missing}
		}
		return saying(text("sampling is there")), nil
	})
}

// addChanges adds tools that change what the server offers.
func addChanges(s *mcp.Server) {
	addTool(s, "test_trigger_tool_change", func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		addTool(s, "test_came_later", func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) { return saying(), nil })
		return saying(text("there is another tool")), nil
	})
	addTool(s, "test_trigger_prompt_change", func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		addPrompt(s, "test_came_later", nil)
		return saying(text("there is another prompt")), nil
	})
}

// addResources adds resources and a template.
func addResources(s *mcp.Server) {
	read := func(mime string, blob []byte, say func(uri string) string) mcp.ResourceHandler {
		return func(_ context.Context, r *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
			c := &mcp.ResourceContents{URI: r.Params.URI, MIMEType: mime, Blob: blob}
			if say != nil {
				c.Text = say(r.Params.URI)
			}
			return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{c}}, nil
		}
	}
	static := func(string) string { return "static" }
	const description = "Fixture of the conformance suite."
	s.AddResource(&mcp.Resource{URI: "test://static-text", Name: "static-text", Description: description, MIMEType: "text/plain"}, read("text/plain", nil, static))
	s.AddResource(&mcp.Resource{URI: "test://static-binary", Name: "static-binary", Description: description, MIMEType: "image/png"}, read("image/png", []byte("\x89PNG"), nil))
	s.AddResource(&mcp.Resource{URI: "test://watched-resource", Name: "watched-resource", Description: description, MIMEType: "text/plain"}, read("text/plain", nil, static))
	s.AddResourceTemplate(&mcp.ResourceTemplate{URITemplate: "test://template/{id}/data", Name: "template", Description: description, MIMEType: "application/json"},
		read("application/json", nil, func(uri string) string {
			id := strings.TrimSuffix(strings.TrimPrefix(uri, "test://template/"), "/data")
			return fmt.Sprintf(`{"id":%q,"templateTest":true}`, id)
		}))
}

// addPrompts adds prompts of each kind.
func addPrompts(s *mcp.Server) {
	addPrompt(s, "test_simple_prompt", func(map[string]string) []mcp.Content { return []mcp.Content{text("simple")} })
	addPrompt(s, "test_prompt_with_arguments", func(a map[string]string) []mcp.Content {
		return []mcp.Content{text("arg1=%s, arg2=%s", a["arg1"], a["arg2"])}
	}, "arg1", "arg2")
	addPrompt(s, "test_prompt_with_embedded_resource", func(a map[string]string) []mcp.Content {
		return []mcp.Content{embedded(a["resourceUri"]), text("look at it")}
	}, "resourceUri")
	addPrompt(s, "test_prompt_with_image", func(map[string]string) []mcp.Content { return []mcp.Content{image(), text("look at it")} })
}

func addPrompt(s *mcp.Server, name string, say func(map[string]string) []mcp.Content, arguments ...string) {
	p := &mcp.Prompt{Name: name, Description: "Fixture of the conformance suite."}
	for _, a := range arguments {
		p.Arguments = append(p.Arguments, &mcp.PromptArgument{Name: a, Description: "an argument", Required: true})
	}
	s.AddPrompt(p, func(_ context.Context, r *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
		result := &mcp.GetPromptResult{}
		if say != nil {
			for _, c := range say(r.Params.Arguments) {
				result.Messages = append(result.Messages, &mcp.PromptMessage{Role: "user", Content: c})
			}
		}
		return result, nil
	})
}
