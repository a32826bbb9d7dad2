// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// errWrong is the exit status of a check that has found something wrong.
type errWrong int

func (e errWrong) Error() string { return fmt.Sprintf("the answer is wrong: exit status %d", int(e)) }

// check asks a URL, without any header of its own, prints the answer, and has an
// exit status of its own when the answer does not say what is wanted.
func check(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("check", flag.ContinueOnError)
	want := f.String("want", "", "`words` that the answer has to have")
	status := f.Int("exit", 7, "exit `status` when it has not")
	sleep := f.Duration("sleep", 0, "how long to wait before")
	if err := f.Parse(args); err != nil {
		return err
	}
	select {
	case <-time.After(*sleep):
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, url := range f.Args() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		fmt.Printf("%s %s", resp.Status, body)
		if !strings.Contains(string(body), *want) {
			return errWrong(*status)
		}
	}
	return nil
}
