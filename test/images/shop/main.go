// SPDX-License-Identifier: Apache-2.0

// Shop is the program in the pods of the end-to-end test. As "serve" it is a
// small HTTP service that asks the next one and propagates baggage, as every
// OpenTelemetry library does; of Sidetrack it knows nothing. As "runner" it makes
// requests on behalf of the test, from inside a pod, one by one or as steady load. As
// "check" it is a test suite of one request; as "dns" the cluster's name server.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "shop:", err)
		var wrong errWrong
		if errors.As(err, &wrong) {
			os.Exit(int(wrong))
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("want serve, runner, check, dns or crash")
	}
	switch args[0] {
	case "serve":
		return serve(ctx, args[1:])
	case "runner":
		return runner(ctx, args[1:])
	case "check":
		return check(ctx, args[1:])
	case "dns":
		return nameServer(ctx, args[1:])
	case "crash":
		return errors.New("the shelves have fallen over")
	}
	return fmt.Errorf("what is %q?", args[0])
}
