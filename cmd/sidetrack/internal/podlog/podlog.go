// SPDX-License-Identifier: Apache-2.0

// Package podlog reads the logs of containers, whole lines of them, and goes on
// where it was when the connection is lost.
//
// It owns no logs and keeps none. Its functions may be called concurrently.
package podlog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

// Container names one.
type Container struct {
	Namespace, Pod, Name string
}

// Options say which lines are wanted.
type Options struct {
	// Follow goes on until the container has ended.
	Follow bool
	// Tail is how many of the lines that are there already; negative is all.
	Tail int64
	// Since leaves out lines that are older. Zero leaves out none.
	Since time.Duration
	// Previous wants the container's last run but one.
	Previous bool
}

// maxLine is the longest line that is kept together.
const maxLine = 1 << 20

// Copy gives each line, with its end, to f, and returns when there are no more.
// A last line without an end is given as it is.
func Copy(ctx context.Context, c *cluster.Cluster, of Container, o Options, f func(line string) error) error {
	r := reader{c: c, of: of, o: o, f: f}
	var failures int
	for {
		read, err := r.once(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && !o.Follow, errors.As(err, &r.told):
			return r.told.err
		case err == nil && r.ended(ctx):
			return nil
		case err != nil && !o.Follow, apierrors.IsForbidden(err), apierrors.IsNotFound(err), apierrors.IsBadRequest(err):
			return cluster.Explain(err, fmt.Sprintf("read the log of pod %s, container %s", of.Pod, of.Name))
		}
		if failures++; read > 0 {
			failures = 0
		}
		if failures > 20 && err != nil {
			return cluster.Explain(err, fmt.Sprintf("read the log of pod %s, container %s", of.Pod, of.Name))
		}
		// The server's word that it has ended may come a little later than the last
		// line.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

type reader struct {
	c  *cluster.Cluster
	of Container
	o  Options
	f  func(string) error
	// last is the time of the last line, and same how many lines have had it: what
	// comes again after a reconnection.
	last time.Time
	same int
	told tellError
}

// tellError is an error of whoever is given the lines.
type tellError struct{ err error }

func (e tellError) Error() string { return e.err.Error() }

// once reads until the server ends it.
func (r *reader) once(ctx context.Context) (lines int, err error) {
	o := &corev1.PodLogOptions{Container: r.of.Name, Follow: r.o.Follow, Previous: r.o.Previous, Timestamps: true}
	switch {
	case !r.last.IsZero():
		// The server cuts the fraction of a second off.
		t := metav1.NewTime(r.last)
		o.SinceTime = &t
	default:
		if r.o.Tail >= 0 {
			o.TailLines = &r.o.Tail
		}
		if r.o.Since > 0 {
			s := int64(max(1, r.o.Since/time.Second))
			o.SinceSeconds = &s
		}
	}
	stream, err := r.c.Core.CoreV1().Pods(r.of.Namespace).GetLogs(r.of.Pod, o).Stream(ctx)
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	again := r.last
	skip := r.same
	in := bufio.NewReaderSize(stream, 64<<10)
	for {
		line, err := readLine(in)
		if line != "" {
			at, text := cutTime(line)
			switch {
			case !again.IsZero() && at.Before(again):
			case !again.IsZero() && at.Equal(again) && skip > 0:
				skip--
			default:
				if at.Equal(r.last) {
					r.same++
				} else {
					r.last, r.same = at, 1
				}
				lines++
				if err := r.f(text); err != nil {
					return lines, tellError{err}
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return lines, err
		}
	}
}

func readLine(in *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		part, err := in.ReadSlice('\n')
		b.Write(part)
		if !errors.Is(err, bufio.ErrBufferFull) || b.Len() > maxLine {
			if errors.Is(err, bufio.ErrBufferFull) {
				err = nil
			}
			return b.String(), err
		}
	}
}

// cutTime cuts the time that the server has put in front of a line off.
func cutTime(line string) (time.Time, string) {
	stamp, text, ok := strings.Cut(line, " ")
	at, err := time.Parse(time.RFC3339Nano, strings.TrimSuffix(stamp, "\n"))
	if err != nil {
		return time.Time{}, line
	}
	if !ok {
		return at, "\n"
	}
	return at, text
}

// ended reports that nothing more will be written: the container has ended, or the
// pod is gone.
func (r *reader) ended(ctx context.Context) bool {
	p, err := r.c.Core.CoreV1().Pods(r.of.Namespace).Get(ctx, r.of.Pod, metav1.GetOptions{})
	if err != nil {
		return apierrors.IsNotFound(err)
	}
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range list {
			if list[i].Name == r.of.Name {
				return list[i].State.Running == nil
			}
		}
	}
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}
