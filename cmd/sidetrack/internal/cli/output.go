// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// The formats that a command prints itself, beside what cli-runtime has printers for.
const (
	formatWide = "wide"
	formatName = "name"
)

// printFlags are cli-runtime's: formats, and the printer of each.
type printFlags interface {
	AllowedFormats() []string
	ToPrinter(format string) (printers.ResourcePrinter, error)
}

// output is -o of a command, and the only place that knows of formats: which the
// command has, what is said of others, and what completion offers.
type output struct {
	format string
	// own are formats that the command prints itself.
	own   []string
	kinds []printFlags
	// template is --template, of commands that have it.
	template *string
	// printer is the format's, after check; nil where the command prints itself.
	printer printers.ResourcePrinter
}

// objectOutput is for a command that prints objects of the API.
func objectOutput(own ...string) *output {
	templates := genericclioptions.NewKubeTemplatePrintFlags()
	return &output{own: own, template: templates.TemplateArgument,
		kinds: []printFlags{genericclioptions.NewJSONYamlPrintFlags(), genericclioptions.NewNamePrintFlags(""), templates}}
}

// nameOutput is for a command after which there is nothing left but names.
func nameOutput() *output {
	return &output{kinds: []printFlags{genericclioptions.NewNamePrintFlags("")}}
}

// resultOutput is for a command whose result is no object of the API.
func resultOutput(own ...string) *output {
	return &output{own: own, kinds: []printFlags{genericclioptions.NewJSONYamlPrintFlags(), genericclioptions.NewJSONPathPrintFlags("", true)}}
}

func (o *output) formats() (all []string) {
	for _, k := range o.kinds {
		all = append(all, k.AllowedFormats()...)
	}
	return append(all, o.own...)
}

func (o *output) register(cmd *cobra.Command) {
	if o.template != nil {
		for _, k := range o.kinds {
			if f, ok := k.(interface{ AddFlags(*cobra.Command) }); ok {
				f.AddFlags(cmd)
			}
		}
	}
	cmd.Flags().StringVarP(&o.format, "output", "o", "", "`format` instead of text for people: "+orList(o.formats()))
	completeFlag(cmd, "output", oneOf(o.formats()...))
}

// check refuses what the command has no format for.
func (o *output) check(cmd *cobra.Command) error {
	format := o.format
	if o.template != nil && *o.template != "" && !cmd.Flag("output").Changed {
		format = "go-template"
	}
	if slices.Contains(o.own, format) || format == "" && !cmd.Flag("output").Changed {
		return nil
	}
	for _, k := range o.kinds {
		p, err := k.ToPrinter(format)
		if genericclioptions.IsNoCompatiblePrinterError(err) || format == "" {
			continue
		}
		if err != nil {
			return o.refuse(fmt.Sprintf("-o %s: %v", format, err))
		}
		o.printer = p
		return nil
	}
	why := fmt.Sprintf("%s has no such format", cmd.CommandPath())
	switch format {
	case formatName:
		why = fmt.Sprintf("what %s prints has no names", cmd.CommandPath())
	case formatWide:
		why = fmt.Sprintf("%s prints no table that could be wider", cmd.CommandPath())
	}
	return o.refuse(fmt.Sprintf("-o %s: %s", orEmpty(format), why))
}

func (o *output) refuse(message string) error {
	return &task.Failure{Kind: task.Usage, Message: message, Remedy: "use " + orList(o.formats()) + ", or leave -o out"}
}

func orEmpty(s string) string {
	if s == "" {
		return `""`
	}
	return s
}

// orList is "a, b or c".
func orList(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

func (o *output) wide() bool { return o.format == formatWide }

// names reports that the command is to print names itself.
func (o *output) names() bool { return o.printer == nil && o.format == formatName }

// object prints an object in a format, and reports whether one is wanted.
func (o *output) object(w io.Writer, x runtime.Object) (bool, error) {
	if o.printer == nil {
		return false, nil
	}
	return true, o.printer.PrintObj(x, w)
}

// result prints what is no object in a format, and reports whether one is wanted. It
// is as it is in JSON.
func (o *output) result(w io.Writer, x any) (bool, error) {
	if o.printer == nil {
		return false, nil
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(x); err != nil {
		return true, err
	}
	return true, o.printer.PrintObj(&runtime.Unknown{Raw: bytes.TrimSpace(b.Bytes()), ContentType: runtime.ContentTypeJSON}, w)
}

// columns is a table for people. The head is left out when it is empty.
type columns struct {
	head []string
	rows [][]string
}

func (c *columns) row(cells ...string) { c.rows = append(c.rows, cells) }

func (c *columns) write(w io.Writer) error {
	// One of text/tabwriter, which counts runes: trees are drawn with more than ASCII.
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	if len(c.head) > 0 && len(c.rows) > 0 {
		fmt.Fprintln(t, strings.Join(c.head, "\t"))
	}
	for _, r := range c.rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}
