// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/cli-runtime/pkg/resource"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

// watchPause is how often the API server is asked to watch at most: it may end each
// watch at once.
const watchPause = time.Second

// watching is what a watch has printed. client-go's RetryWatcher would not do: it ends, or
// tries for ever, when what the watch is to begin with is too old, and is silent meanwhile.
type watching struct {
	p       *program
	table   bool
	print   func(watch.EventType, runtime.Object) error
	version string // from where on a watch tells what is new
	known   map[string]item
	told    string // of what has failed
}

// item is one object, or a table with its row.
type item struct {
	key, version string
	object       runtime.Object
}

// watch prints what there is, and then each change, until it is interrupted: rows of one
// table, or one object after the other. again asks anew for what r is of, as a list.
func (p *program) watch(cmd *cobra.Command, namespace string, f *getFlags, r *resource.Result, again func() *resource.Result, printer printObject) error {
	const doing = "watch the sandboxes"
	infos, err := r.Infos()
	if err != nil {
		return p.explainGet(cmd, namespace, err)
	}
	if len(infos) != 1 {
		return usage(cmd, errors.New("only one sandbox, or all, can be watched: leave out the others' names"))
	}
	w := &watching{p: p, table: f.output.printer == nil, known: map[string]item{}}
	w.print = func(kind watch.EventType, o runtime.Object) error {
		if f.events {
			o = &metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Object: o}}
		}
		return printer(o, p.streams.Out)
	}
	if err := w.begin(infos[0].Object); err != nil {
		return cluster.Explain(err, doing)
	}
	ctx := cmd.Context()
	for first := true; ; first = false {
		began := time.Now()
		failed, err := w.follow(ctx, r)
		if failed != nil && (apierrors.IsResourceExpired(failed) || apierrors.IsGone(failed)) {
			anew := again()
			if infos, failed = anew.Infos(); failed == nil && len(infos) == 1 {
				r, err = anew, w.catchUp(infos[0].Object)
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil // The user has seen enough.
		case err != nil:
			return err
		case failed != nil && (first || !passing(failed)):
			return cluster.Explain(failed, doing)
		case failed != nil && w.told != failed.Error():
			w.told = failed.Error()
			complain(p.streams.ErrOut, p.name, cluster.Explain(failed, doing))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchPause - time.Since(began)):
		}
	}
}

// passing reports that the API server may do in a moment what it does not do now.
func passing(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return true // It has not been reached.
	}
	code := status.Status().Code
	return code >= http.StatusInternalServerError || code == http.StatusTooManyRequests || code == http.StatusRequestTimeout
}

// begin prints what there is.
func (w *watching) begin(o runtime.Object) error {
	whole, all, err := w.read(o)
	if err != nil {
		return err
	}
	for _, i := range all {
		w.known[i.key] = i
	}
	if !meta.IsListType(whole) || w.table {
		return w.print(watch.Added, whole)
	}
	for _, i := range all {
		if err := w.print(watch.Added, i.object); err != nil {
			return err
		}
	}
	return nil
}

// follow prints changes until a watch ends. failed says why it does, or cannot begin; nil
// is that the API server has ended it as it ends each one after a time.
func (w *watching) follow(ctx context.Context, r *resource.Result) (failed, err error) {
	changes, failed := r.Watch(w.version)
	if failed != nil {
		return failed, nil
	}
	defer changes.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, nil
		case e, ok := <-changes.ResultChan():
			switch {
			case !ok || ctx.Err() != nil:
				return nil, nil
			case e.Type == watch.Error:
				return apierrors.FromObject(e.Object), nil
			}
			w.told = ""
			if err := w.change(e); err != nil {
				return nil, err
			}
		}
	}
}

func (w *watching) change(e watch.Event) error {
	o, all, err := w.read(e.Object)
	if err != nil {
		return err
	}
	for _, i := range all {
		w.version = i.version
		if w.known[i.key] = i; e.Type == watch.Deleted {
			delete(w.known, i.key)
		}
	}
	return w.print(e.Type, o)
}

// catchUp prints what has changed while nobody watched.
func (w *watching) catchUp(o runtime.Object) error {
	_, all, err := w.read(o)
	if err != nil {
		return err
	}
	gone := maps.Clone(w.known)
	for _, i := range all {
		delete(gone, i.key)
		kind := watch.Modified
		switch before, ok := w.known[i.key]; {
		case !ok:
			kind = watch.Added
		case before.version == i.version:
			continue
		}
		w.known[i.key] = i
		if err := w.print(kind, i.object); err != nil {
			return err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(gone)) {
		delete(w.known, key)
		if err := w.print(watch.Deleted, gone[key].object); err != nil {
			return err
		}
	}
	return nil
}

// read returns what has come as it is to be printed, and the objects of it. What is new
// since then is to be watched.
func (w *watching) read(o runtime.Object) (runtime.Object, []item, error) {
	m, err := meta.CommonAccessor(o)
	if err != nil {
		return nil, nil, err
	}
	w.version = m.GetResourceVersion()
	o, err = shown(o, w.table)
	if err != nil {
		return nil, nil, err
	}
	all, err := items(o)
	return o, all, err
}

// items are the objects of a list or a table, or the one that it is.
func items(o runtime.Object) ([]item, error) {
	var out []item
	add := func(of, o runtime.Object) error {
		m, err := meta.Accessor(of)
		if err == nil {
			out = append(out, item{m.GetNamespace() + "/" + m.GetName(), m.GetResourceVersion(), o})
		}
		return err
	}
	t, ok := o.(*metav1.Table)
	switch {
	case ok:
		for _, row := range t.Rows {
			one := &metav1.Table{TypeMeta: t.TypeMeta, ListMeta: t.ListMeta, ColumnDefinitions: t.ColumnDefinitions, Rows: []metav1.TableRow{row}}
			if row.Object.Object == nil {
				return nil, errors.New("the API server's table does not say what its rows are of")
			}
			if err := add(row.Object.Object, one); err != nil {
				return nil, fmt.Errorf("read the API server's table: %w", err)
			}
		}
	case meta.IsListType(o):
		list, err := meta.ExtractList(o)
		if err != nil {
			return nil, fmt.Errorf("read the API server's list: %w", err)
		}
		for _, one := range list {
			if err := add(one, one); err != nil {
				return nil, fmt.Errorf("read the API server's list: %w", err)
			}
		}
	default:
		if err := add(o, o); err != nil {
			return nil, err
		}
	}
	return out, nil
}
