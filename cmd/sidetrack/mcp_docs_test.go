// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"sigs.k8s.io/yaml"
)

const docs = "../../docs"

// serverSettings is how an agent is told to start a server.
type serverSettings struct {
	Type    string            `json:"type" toml:"type"`
	Command string            `json:"command" toml:"command"`
	Args    []string          `json:"args" toml:"args"`
	Env     map[string]string `json:"env" toml:"env"`
	// EnvVars are the variables that the agent hands on, where it does not hand on all.
	EnvVars []string `json:"-" toml:"env_vars"`
	Timeout int      `json:"-" toml:"tool_timeout_sec"`
}

func settings(t *testing.T, name string) serverSettings {
	t.Helper()
	text := document(t, filepath.Join("agents", name))
	if strings.HasSuffix(name, ".toml") {
		var all struct {
			Servers map[string]serverSettings `toml:"mcp_servers"`
		}
		got, err := toml.Decode(text, &all)
		if err != nil || len(got.Undecoded()) > 0 {
			t.Fatalf("%s: %v, unknown %v", name, err, got.Undecoded())
		}
		return all.Servers["sidetrack"]
	}
	var all struct {
		Servers map[string]serverSettings `json:"mcpServers"`
	}
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&all); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return all.Servers["sidetrack"]
}

func document(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(docs, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTheReadySettingsOfAgentsStartTheServer(t *testing.T) {
	for _, name := range []string{"claude-code.mcp.json", "cursor.mcp.json", "codex.config.toml"} {
		t.Run(name, func(t *testing.T) {
			s := settings(t, name)
			if s.Command != "sidetrack" || s.Type != "" && s.Type != "stdio" {
				t.Fatalf("it starts %+v", s)
			}
			config, err := plane.Kubeconfig()
			if err != nil {
				t.Fatal(err)
			}
			t.Setenv("KUBECONFIG", config)
			cmd := exec.Command(builtProgram(t), s.Args...)
			cmd.Env = os.Environ()
			if strings.HasSuffix(name, ".toml") {
				cmd.Env = only(append(s.EnvVars, "HOME", "PATH"))
			}
			cs, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(), &mcp.CommandTransport{Command: cmd}, nil)
			if err != nil {
				t.Fatal(err)
			}
			a := &agent{ClientSession: cs}
			a.call(t, false, "list_workloads", object{})
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// only is of the environment what is named, as Codex does it.
func only(names []string) []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return !slices.Contains(names, name)
	})
}

func TestTheSkillAndTheDocumentationKnowTheToolsThatThereAre(t *testing.T) {
	list, err := newAgent(t, "default").ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var tools, arguments []string
	for _, tool := range list.Tools {
		tools = append(tools, tool.Name)
		for _, schema := range []any{tool.InputSchema, tool.OutputSchema} {
			arguments = append(arguments, names(schema)...)
		}
	}
	for _, file := range []string{"agents/sidetrack/SKILL.md", "mcp.md"} {
		text := document(t, file)
		for _, name := range tools {
			if !strings.Contains(text, "`"+name+"`") {
				t.Errorf("%s does not tell of %s", file, name)
			}
		}
		// What is written as code and looks like a name is one.
		for _, m := range regexp.MustCompile("`([a-z]+(?:_[a-z]+)+)").FindAllStringSubmatch(text, -1) {
			if !slices.Contains(tools, m[1]) && !slices.Contains(arguments, m[1]) {
				t.Errorf("%s: there is no tool and no argument %s", file, m[1])
			}
		}
	}
	_, rest, _ := strings.Cut(document(t, "agents/sidetrack/SKILL.md"), "---\n")
	head, _, ok := strings.Cut(rest, "---\n")
	var front struct {
		Name        string `json:"name"`
		Description string `json:"description"`
	}
	if err := yaml.UnmarshalStrict([]byte(head), &front); err != nil || !ok {
		t.Fatalf("the skill's front matter: %v", err)
	}
	// The limits are those of Agent Skills; the name is the folder's.
	if front.Name != "sidetrack" || front.Description == "" || len(front.Description) > 1024 {
		t.Errorf("name %q, a description of %d bytes", front.Name, len(front.Description))
	}
}

// names are those of a schema's properties, and of theirs.
func names(schema any) []string {
	s, _ := schema.(map[string]any)
	properties, _ := s["properties"].(map[string]any)
	var all []string
	for name, p := range properties {
		all = append(append(all, name), names(p)...)
		if p, ok := p.(map[string]any); ok {
			all = append(all, names(p["items"])...)
		}
	}
	return all
}
