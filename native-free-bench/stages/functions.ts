/** Which function a line is in, by TypeScript's own parser. */
import { readFileSync } from 'node:fs';
import ts from 'typescript';

export interface FunctionRange {
  /** As V8 names it: `#forward`, `checkIp`. */
  readonly name: string;
  /** Counted from 1, both included. */
  readonly first: number;
  readonly last: number;
}

/** All named functions of a file, methods and getters included, inner ones after outer ones. */
export function functionsOf(file: string): FunctionRange[] {
  const source = ts.createSourceFile(file, readFileSync(file, 'utf8'), ts.ScriptTarget.ES2022, true);
  const found: FunctionRange[] = [];
  const lineOf = (position: number): number => source.getLineAndCharacterOfPosition(position).line + 1;
  const visit = (node: ts.Node): void => {
    const name = nameOf(node);
    if (name) found.push({ name, first: lineOf(node.getStart()), last: lineOf(node.getEnd()) });
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

function nameOf(node: ts.Node): string | undefined {
  if (ts.isConstructorDeclaration(node)) return 'constructor';
  if (ts.isFunctionDeclaration(node) || ts.isMethodDeclaration(node) || ts.isAccessor(node))
    return node.name?.getText();
  const made = ts.isVariableDeclaration(node) || ts.isPropertyAssignment(node) ? node.initializer : undefined;
  const isFunction = made && (ts.isArrowFunction(made) || ts.isFunctionExpression(made));
  return isFunction ? (node as ts.VariableDeclaration | ts.PropertyAssignment).name.getText() : undefined;
}

/** The innermost function around a line, or undefined. */
export function functionAt(functions: readonly FunctionRange[], line: number): string | undefined {
  let inner: FunctionRange | undefined;
  for (const one of functions) {
    if (line < one.first || line > one.last) continue;
    if (inner === undefined || one.last - one.first <= inner.last - inner.first) inner = one;
  }
  return inner?.name;
}
