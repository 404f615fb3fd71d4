package input

import (
	"fmt"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
)

// promptTemplate makes prompts from the columns of a line.
type promptTemplate struct {
	parsed *template.Template
	// names are the columns that it uses, and needed are those that must not be empty: they
	// are in no condition.
	names, needed []string
}

const templateHint = "as in: --prompt 'a {{.animal}} in the style of {{.painter}}', or {{index . \"main color\"}} for a header with blanks"

// parseTemplate parses a template and finds its columns. Loops, definitions and functions
// other than comparisons are refused: a prompt needs none, and they could run without end.
func parseTemplate(source string) (*promptTemplate, error) {
	parsed, err := template.New("prompt").Option("missingkey=error").Parse(source)
	if err != nil {
		return nil, errorf(templateHint, "--prompt: %s", strings.TrimPrefix(err.Error(), "template: prompt:"))
	}
	if parsed.Tree == nil || len(parsed.Templates()) > 1 {
		return nil, errorf(templateHint, "--prompt: it has no text of its own")
	}
	t := &promptTemplate{parsed: parsed}
	if err := t.walk(parsed.Root, true); err != nil {
		return nil, errorf(templateHint, "--prompt: %w", err)
	}
	return t, nil
}

// walk collects the columns of a node. needed is set outside of conditions.
func (t *promptTemplate) walk(node parse.Node, needed bool) error {
	switch n := node.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, child := range n.Nodes {
			if err := t.walk(child, needed); err != nil {
				return err
			}
		}
	case *parse.ActionNode:
		return t.walk(n.Pipe, needed)
	case *parse.IfNode:
		for _, child := range []parse.Node{n.Pipe, n.List, n.ElseList} {
			if err := t.walk(child, false); err != nil {
				return err
			}
		}
	case *parse.PipeNode:
		if len(n.Decl) > 0 {
			return fmt.Errorf("variables are not available: %s", n)
		}
		for _, command := range n.Cmds {
			if err := t.command(command, needed); err != nil {
				return err
			}
		}
	case *parse.TextNode, *parse.CommentNode, *parse.StringNode, *parse.NumberNode, *parse.BoolNode, *parse.DotNode:
	case *parse.FieldNode:
		if len(n.Ident) != 1 {
			return fmt.Errorf("%s is no column", n)
		}
		t.add(n.Ident[0], needed)
	default:
		return fmt.Errorf("%s is not available", node)
	}
	return nil
}

// command collects the columns of a command.
func (t *promptTemplate) command(c *parse.CommandNode, needed bool) error {
	args := c.Args
	if name, ok := args[0].(*parse.IdentifierNode); ok {
		if !slices.Contains([]string{"index", "eq", "ne", "and", "or", "not"}, name.Ident) {
			return fmt.Errorf("the function %s is not available", name.Ident)
		}
		args = args[1:]
		if name.Ident == "index" {
			var key *parse.StringNode
			if len(args) == 2 && args[0].Type() == parse.NodeDot {
				key, _ = args[1].(*parse.StringNode)
			}
			if key == nil {
				return fmt.Errorf("%s is no column", c)
			}
			t.add(key.Text, needed)
			return nil
		}
	} else if len(args) == 1 && args[0].Type() == parse.NodeDot {
		return fmt.Errorf("{{.}} is no column")
	}
	for _, arg := range args {
		if err := t.walk(arg, needed); err != nil {
			return err
		}
	}
	return nil
}

func (t *promptTemplate) add(name string, needed bool) {
	if !slices.Contains(t.names, name) {
		t.names = append(t.names, name)
	}
	if needed && !slices.Contains(t.needed, name) {
		t.needed = append(t.needed, name)
	}
}

// prompt makes the prompt of a line. It fails if a column that it needs is not there.
func (t *promptTemplate) prompt(values map[string]string) (string, error) {
	var b strings.Builder
	if err := t.parsed.Execute(&b, values); err != nil {
		return "", err
	}
	return b.String(), nil
}
