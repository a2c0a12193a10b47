package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Commands carries out one command at a time.
type Commands struct {
	mesh    *Mesh
	streams *Streams
	quit    func()
}

// Answer is what a command gives back, as JSON.
type Answer map[string]any

// Do carries out a line.
func (c *Commands) Do(line string) Answer {
	c.mesh.mu.Lock()
	defer c.mesh.mu.Unlock()
	words := strings.Fields(line)
	if len(words) == 0 {
		return Answer{"error": "no command"}
	}
	pushed := time.Now()
	answer, err := c.dispatch(words[0], words[1:])
	if err != nil {
		return Answer{"error": err.Error()}
	}
	if answer == nil {
		answer = Answer{"pushed": pushed.UnixNano(), "seconds": time.Since(pushed).Seconds()}
	}
	return answer
}

func (c *Commands) dispatch(name string, args []string) (Answer, error) {
	want := map[string][2]int{
		"weight": {3, 3}, "endpoint": {1, 2}, "assign": {2, 1 << 16}, "storm": {1, 1}, "replace": {0, 0}, "rotate": {0, 0}, "add": {1, 1},
		"remove": {1, 1}, "bad": {2, 2}, "good": {2, 2}, "drop": {0, 0}, "count": {0, 0}, "quit": {0, 0},
	}
	n, known := want[name]
	if !known {
		return nil, fmt.Errorf("no command %q", name)
	}
	if len(args) < n[0] || len(args) > n[1] {
		return nil, fmt.Errorf("%q takes %d to %d words, not %d", name, n[0], n[1], len(args))
	}
	switch name {
	case "weight":
		a, err := strconv.ParseUint(args[1], 10, 32)
		if err != nil {
			return nil, err
		}
		b, err := strconv.ParseUint(args[2], 10, 32)
		if err != nil {
			return nil, err
		}
		return nil, c.mesh.Weight(args[0], uint32(a), uint32(b))
	case "endpoint":
		return nil, c.mesh.Endpoint(args[0], strings.Join(args[1:], ""))
	case "assign":
		return nil, c.mesh.Assign(args[0], args[1:])
	case "storm":
		times, err := strconv.Atoi(args[0])
		if err != nil {
			return nil, err
		}
		return nil, c.mesh.Storm(times)
	case "rotate":
		return nil, c.mesh.Rotate()
	case "replace":
		return nil, c.mesh.Replace()
	case "add":
		return nil, c.mesh.Add(args[0])
	case "remove":
		return nil, c.mesh.Remove(args[0])
	case "bad":
		return nil, c.mesh.Bad(args[0], args[1])
	case "good":
		return nil, c.mesh.Good(args[0], args[1])
	case "drop":
		return Answer{"dropped": c.streams.Drop()}, nil
	case "count":
		return c.streams.Count(), nil
	default: // quit
		c.quit()
		return Answer{"bye": true}, nil
	}
}
