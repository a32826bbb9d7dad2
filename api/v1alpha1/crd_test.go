// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// crdSchema is what is looked at of a CRD's OpenAPI schema.
type crdSchema struct {
	Type        string                `json:"type"`
	Description string                `json:"description"`
	Properties  map[string]*crdSchema `json:"properties"`
	Items       *crdSchema            `json:"items"`
	MaxItems    *int64                `json:"maxItems"`
}

func crdSchemas(t *testing.T) map[string]*crdSchema {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", "deploy", "charts", "sidetrack-crds", "templates", "sidetrack.dev_*.yaml"))
	if err != nil || len(files) != 3 {
		t.Fatalf("CRDs: %v, %v", files, err)
	}
	out := map[string]*crdSchema{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "{{") {
			t.Errorf("%s has what a Helm template would not leave as it is", file)
		}
		var crd struct {
			Spec struct {
				Names    struct{ Kind string }
				Versions []struct {
					Schema struct{ OpenAPIV3Schema *crdSchema }
				}
			}
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatal(err)
		}
		out[crd.Spec.Names.Kind] = crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	}
	return out
}

func (s *crdSchema) walk(path string, visit func(path string, s *crdSchema)) {
	visit(path, s)
	for name, p := range s.Properties {
		p.walk(path+"."+name, visit)
	}
	if s.Items != nil {
		s.Items.walk(path+"[]", visit)
	}
}

func TestEveryFieldHasADescription(t *testing.T) {
	for kind, s := range crdSchemas(t) {
		fields := 0
		s.walk(kind, func(path string, s *crdSchema) {
			if strings.HasSuffix(path, "[]") || path == kind+".metadata" {
				return // the list has it; Kubernetes' own
			}
			fields++
			if strings.TrimSpace(s.Description) == "" {
				t.Errorf("%s has no description for kubectl explain", path)
			}
		})
		if fields < 10 {
			t.Errorf("%s has %d fields: the schema was not read", kind, fields)
		}
	}
}

func TestEveryListThatPeopleWriteIsBounded(t *testing.T) {
	// Kubernetes' own types, whose bounds are not ours to set.
	theirs := []string{"Sandbox.spec.forks[].containers[].env[]", "RouteGroup.spec.selector"}
	for kind, s := range crdSchemas(t) {
		s.walk(kind, func(path string, s *crdSchema) {
			if s.Type != "array" || s.MaxItems != nil || !strings.HasPrefix(path, kind+".spec") {
				return
			}
			if !slices.ContainsFunc(theirs, func(p string) bool { return strings.HasPrefix(path, p) }) {
				t.Errorf("%s has no maxItems", path)
			}
		})
	}
}
