// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// clusterName logs in without a password and asks one question, in version 3 of
// PostgreSQL's protocol: $QUESTION, where an image has it.
func clusterName(conn io.ReadWriter) (string, error) {
	body := binary.BigEndian.AppendUint32(nil, 3<<16)
	body = append(body, "user\x00postgres\x00database\x00postgres\x00\x00"...)
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...)); err != nil {
		return "", err
	}
	in := bufio.NewReader(conn)
	if _, err := untilReady(in); err != nil {
		return "", err
	}
	if err := send(conn, 'Q', cmp.Or(os.Getenv("QUESTION"), "show cluster_name")+"\x00"); err != nil {
		return "", err
	}
	row, err := untilReady(in)
	if err != nil {
		return "", err
	}
	// Two bytes say how many columns there are, four how long the first one is.
	if len(row) < 6 || int(binary.BigEndian.Uint32([]byte(row[2:6]))) != len(row)-6 {
		return "", fmt.Errorf("the row %q is not one column", row)
	}
	return row[6:], send(conn, 'X', "")
}

func send(w io.Writer, kind byte, body string) error {
	b := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4))
	_, err := w.Write(append(b, body...))
	return err
}

// untilReady reads messages until the server wants the next question, and
// returns the last row among them.
func untilReady(r io.Reader) (row string, err error) {
	for {
		var head [5]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return "", err
		}
		n := binary.BigEndian.Uint32(head[1:])
		if n < 4 || n > 1<<20 {
			return "", fmt.Errorf("a message of %d bytes", n)
		}
		body := make([]byte, n-4)
		if _, err := io.ReadFull(r, body); err != nil {
			return "", err
		}
		switch head[0] {
		case 'R':
			if binary.BigEndian.Uint32(body) != 0 {
				return "", errors.New("it wants a password")
			}
		case 'D':
			row = string(body)
		case 'E':
			return "", errors.New(strings.ReplaceAll(strings.Trim(string(body), "\x00"), "\x00", " "))
		case 'Z':
			return row, nil
		}
	}
}
