// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// objectKey identifies an object among all files.
type objectKey struct {
	kind string
	name routing.Name
}

// object is what is kept of one object: *routing.Service,
// *routing.EndpointSlice, *routing.Sandbox, *pods.Pod, *group, *grant, or a silent
// for one that says nothing about routing. There may be very many.
type object struct {
	value  any
	labels map[string]string // a Sandbox's
	item   int               // of a List, from 1
}

// silent is an object that only takes up its name.
type silent struct{ objectKey }

func (o *object) key() objectKey {
	switch v := o.value.(type) {
	case *routing.Service:
		return objectKey{"Service", v.Name}
	case *routing.EndpointSlice:
		return objectKey{"EndpointSlice", v.Name}
	case *routing.Sandbox:
		return objectKey{v1alpha1.SandboxKind, v.Name}
	case *pods.Pod:
		return objectKey{"Pod", v.Name}
	case *group:
		return objectKey{v1alpha1.RouteGroupKind, v.Name}
	case *grant:
		return objectKey{"ReferenceGrant", v.name}
	case *silent:
		return v.objectKey
	}
	panic(fmt.Sprintf("source: object of type %T", o.value))
}

// document is what has become of one YAML document. It does not know its own
// number, so that it can be kept when documents before it come or go.
type document struct {
	text     digest // its text's
	refused  bool   // one of the problems is an error
	objects  []object
	problems []Problem
}

// part is one document of a stream and the line, from zero, that it begins on.
type part struct {
	text []byte
	line int
}

// splitDocuments cuts a YAML stream at its document markers. A stream's first
// document may, but need not, begin with one; comments before it make none.
func splitDocuments(stream []byte) []part {
	var docs []part
	start, startLine, line, marked := 0, 0, 0, false
	end := func(at int) {
		doc := stream[start:at]
		if marked || !blank(doc) {
			docs = append(docs, part{doc, startLine})
		}
	}
	for i := 0; i < len(stream); line++ {
		next := len(stream)
		if n := bytes.IndexByte(stream[i:], '\n'); n >= 0 {
			next = i + n + 1
		}
		text := bytes.TrimRight(stream[i:next], "\r\n")
		switch {
		case marker(text, "---"):
			end(i)
			start, startLine, marked = i+len("---"), line, true
		case marker(text, "..."):
			end(i)
			start, startLine, marked = next, line+1, false
		}
		i = next
	}
	end(len(stream))
	return docs
}

func marker(line []byte, m string) bool {
	return bytes.HasPrefix(line, []byte(m)) && (len(line) == len(m) || line[len(m)] == ' ' || line[len(m)] == '\t')
}

// blank reports whether a document has nothing in it but comments and
// directives.
func blank(doc []byte) bool {
	for line := range bytes.Lines(doc) {
		line = bytes.TrimLeft(bytes.TrimSpace(line), "\ufeff")
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return false
		}
	}
	return true
}

// decodeDocument reads one YAML document, which begins on the given line (from
// zero) of its file.
func decodeDocument(text []byte, line int) *document {
	d := &document{}
	if blank(text) {
		return d
	}
	data, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		// The error names a line: have it count those before the document too.
		if _, again := yaml.YAMLToJSONStrict(append(bytes.Repeat([]byte{'\n'}, line), text...)); again != nil {
			err = again
		}
		d.fail(Problem{Problem: routing.Problem{Message: yamlMessage(err)}})
		return d
	}
	d.decode(data, 0)
	return d
}

// yamlMessage puts the library's message on one line.
func yamlMessage(err error) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "error converting YAML to JSON: ", "")), " ")
}

func (d *document) fail(p Problem) {
	p.Refused = true
	d.refused = true
	d.problems = append(d.problems, p)
}

func (d *document) warn(item int, ps ...routing.Problem) {
	for _, p := range ps {
		d.problems = append(d.problems, Problem{Item: item, Problem: p})
	}
}

// head is what every object has.
type head struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
}

// decode reads one object, or the items of a List. item is zero outside of
// one.
func (d *document) decode(data []byte, item int) {
	var h head
	if string(data) == "null" {
		return
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &h); err != nil {
		f, msg := explain(data, &head{}, err)
		d.fail(Problem{Item: item, Problem: routing.Problem{Field: f, Message: msg}})
		return
	}
	name := routing.Name{Namespace: known(h.Metadata.Namespace), Name: h.Metadata.Name}
	if name.Namespace == "" {
		name.Namespace = metav1.NamespaceDefault
	}
	about := routing.Problem{Kind: h.Kind, Object: name}
	switch {
	case h.Kind == "" || h.APIVersion == "":
		missing := "kind"
		if h.APIVersion == "" {
			missing = "apiVersion"
		}
		d.fail(Problem{Item: item, Problem: routing.Problem{Field: missing, Message: "is missing: every object says its apiVersion and its kind"}})
		return
	case h.Kind == "List" && h.APIVersion == "v1" && item == 0:
		d.decodeList(data)
		return
	case h.Metadata.Name == "":
		about.Object = routing.Name{Namespace: name.Namespace, Name: "(unnamed)"}
	}

	o := object{value: &silent{objectKey{h.Kind, name}}, item: item}
	var errs field.ErrorList
	var advice []routing.Problem
	ok := false
	switch h.APIVersion + " " + h.Kind {
	case "v1 Service":
		var obj corev1.Service
		if ok = d.into(data, &obj, item, about, false); ok {
			obj.Namespace = name.Namespace
			var s routing.Service
			s, errs = convertService(&obj)
			o.value = &s
		}
	case "v1 Pod":
		var obj corev1.Pod
		if ok = d.into(data, &obj, item, about, false); ok {
			obj.Namespace = name.Namespace
			if p, alive := convertPod(&obj); alive {
				o.value = &p
				advice = podAdvice(&obj)
			}
		}
	case "discovery.k8s.io/v1 EndpointSlice":
		var obj discoveryv1.EndpointSlice
		if ok = d.into(data, &obj, item, about, false); ok {
			obj.Namespace = name.Namespace
			var s routing.EndpointSlice
			var useful bool
			if s, useful, errs = convertSlice(&obj); useful {
				o.value = &s
			} else {
				p := about
				p.Message = "is left out: it holds host names instead of addresses"
				if s.Service == "" {
					p.Field = fmt.Sprintf("metadata.labels[%s]", discoveryv1.LabelServiceName)
					p.Message = "is missing, so that it belongs to no Service and is left out: name the Service there"
				}
				advice = append(advice, p)
			}
		}
	case v1alpha1.APIVersion + " " + v1alpha1.SandboxKind:
		var obj v1alpha1.Sandbox
		if ok = d.into(data, &obj, item, about, true); ok {
			obj.Namespace = name.Namespace
			if errs = obj.Validate(); len(errs) == 0 {
				s := convertSandbox(&obj)
				o.value, o.labels = &s, obj.Labels
				advice = standaloneAdvice(&obj)
			}
		}
	case v1alpha1.APIVersion + " " + v1alpha1.RouteGroupKind:
		var obj v1alpha1.RouteGroup
		if ok = d.into(data, &obj, item, about, true); ok {
			obj.Namespace = name.Namespace
			if errs = obj.Validate(); len(errs) == 0 {
				o.value = convertGroup(&obj)
				advice = groupAdvice(&obj)
			}
		}
	case "gateway.networking.k8s.io/v1 ReferenceGrant", "gateway.networking.k8s.io/v1beta1 ReferenceGrant":
		var obj gatewayv1.ReferenceGrant
		if ok = d.into(data, &obj, item, about, false); ok {
			obj.Namespace = name.Namespace
			o.value = convertGrant(&obj)
		}
	default:
		about.Message = fmt.Sprintf("is ignored: %s %s is none of v1 Service, v1 Pod, discovery.k8s.io/v1 EndpointSlice, gateway.networking.k8s.io/v1 ReferenceGrant, and %s %s and %s",
			h.APIVersion, h.Kind, v1alpha1.APIVersion, v1alpha1.SandboxKind, v1alpha1.RouteGroupKind)
		d.warn(item, about)
		return
	}
	if !ok {
		return
	}
	if h.Metadata.Name == "" && h.APIVersion != v1alpha1.APIVersion {
		errs = append(errs, field.Required(field.NewPath("metadata", "name"), "every object needs a name"))
	}
	for _, err := range errs {
		p := about
		p.Field, p.Message = err.Field, err.Detail
		d.fail(Problem{Item: item, Problem: p})
	}
	d.warn(item, advice...)
	d.objects = append(d.objects, o)
}

func (d *document) decodeList(data []byte) {
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &list); err != nil {
		d.fail(Problem{Problem: routing.Problem{Field: "items", Message: "is not a list of objects"}})
		return
	}
	for i, item := range list.Items {
		d.decode(item, i+1)
	}
}

// into decodes data into obj. What is unknown in one of our own kinds is an
// error, because there it is a typing mistake; in the kinds of Kubernetes it may
// be a newer version's, and is only mentioned.
func (d *document) into(data []byte, obj any, item int, about routing.Problem, ours bool) bool {
	unknown, err := kjson.UnmarshalStrict(data, obj, kjson.DisallowUnknownFields)
	if err != nil {
		about.Field, about.Message = explain(data, obj, err)
		d.fail(Problem{Item: item, Problem: about})
		return false
	}
	for _, u := range unknown {
		p := about
		p.Field, p.Message = unknownField(u)
		if ours {
			p.Message = "is not a field of " + about.Kind + ": correct its name or remove it"
			d.fail(Problem{Item: item, Problem: p})
		} else {
			p.Message = "is unknown and has no effect"
			d.warn(item, p)
		}
	}
	return !ours || len(unknown) == 0
}

// unknownField takes the path out of the decoder's `unknown field "spec.x"`.
func unknownField(err error) (path, message string) {
	if fe, ok := err.(kjson.FieldError); ok {
		return fe.FieldPath(), ""
	}
	return "", err.Error()
}

// explain says which field of data cannot be decoded into a value of obj's type
// and what to do about it. The decoder's own errors do not name the index in a
// list, and those of types that decode themselves (a duration, a port) name no
// field at all. So each leaf is tried alone. It never shows a value that is not
// needed to understand the message, as it may be a routing key.
func explain(data []byte, obj any, err error) (path, message string) {
	var tree any
	if json.Unmarshal(data, &tree) != nil {
		return "", err.Error()
	}
	if _, ok := tree.(map[string]any); !ok {
		return "", "is not an object: it has no fields"
	}
	t := reflect.TypeOf(obj).Elem()
	try := func(path []any, leaf any) error {
		for _, step := range slices.Backward(path) {
			if name, ok := step.(string); ok {
				leaf = map[string]any{name: leaf}
			} else {
				leaf = []any{leaf}
			}
		}
		one, err := json.Marshal(leaf)
		if err != nil {
			return nil
		}
		return kjson.UnmarshalCaseSensitivePreserveInts(one, reflect.New(t).Interface())
	}
	bad, why := firstBad(tree, nil, try)
	if bad == nil {
		return "", err.Error()
	}
	// The culprit is the deepest value that decodes once it is null: perhaps an
	// object around the leaf, where text belongs.
	n := len(bad)
	for n > 1 && try(bad[:n], nil) != nil {
		n--
	}
	return pathText(bad[:n]), remedy(why)
}

func firstBad(v any, at []any, try func([]any, any) error) ([]any, error) {
	at = slices.Clip(at)
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if bad, err := firstBad(v[k], append(at, k), try); bad != nil {
				return bad, err
			}
		}
		if len(v) > 0 {
			return nil, nil
		}
	case []any:
		for i := range v {
			if bad, err := firstBad(v[i], append(at, i), try); bad != nil {
				return bad, err
			}
		}
		if len(v) > 0 {
			return nil, nil
		}
	}
	if err := try(at, v); err != nil {
		return at, err
	}
	return nil, nil
}

func pathText(path []any) string {
	var b strings.Builder
	for _, step := range path {
		switch step := step.(type) {
		case string:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(step)
		case int:
			b.WriteString("[" + strconv.Itoa(step) + "]")
		}
	}
	return b.String()
}

// remedy turns a decoder's error into a sentence.
func remedy(err error) string {
	var mismatch *json.UnmarshalTypeError
	if !errors.As(err, &mismatch) {
		if strings.Contains(err.Error(), "invalid duration") || strings.Contains(err.Error(), "unit in duration") {
			return "is not a duration: write one such as 90s, 30m or 2h"
		}
		return err.Error()
	}
	got, _, _ := strings.Cut(mismatch.Value, " ") // the rest would be the value itself
	switch want := mismatch.Type.Kind(); {
	case want == reflect.String && (got == "number" || got == "bool"):
		return "is a " + got + " where text is needed: put it in quotes"
	case want == reflect.String:
		return "is an " + got + " where text is needed" // array or object
	case got == "string" && (want == reflect.Bool || want >= reflect.Int && want <= reflect.Float64):
		return "is text where a " + kindName(want) + " is needed: take its quotes away"
	default:
		article := "a "
		if got == "array" || got == "object" {
			article = "an "
		}
		return "is " + article + got + " where a " + kindName(want) + " is needed"
	}
}

func kindName(k reflect.Kind) string {
	switch {
	case k == reflect.Bool:
		return "bool"
	case k >= reflect.Int && k <= reflect.Uint64:
		return "whole number"
	case k == reflect.Slice || k == reflect.Array:
		return "list"
	case k == reflect.Struct || k == reflect.Map:
		return "set of fields"
	}
	return k.String()
}
