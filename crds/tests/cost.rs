//! What the rules may cost the API server.
//!
//! The API server refuses a CustomResourceDefinition whose rules might take too
//! long, by an estimate made from the schema alone: 10,000,000 for one rule and
//! 100,000,000 for all rules of a definition. Here the same estimate is made, and
//! each is held to half of that, so that the kinds can grow.
//!
//! How it is made (k8s.io/apiserver/pkg/cel and cel-go's checker): every operand of
//! an expression is taken at its largest and every branch that can be taken is
//! taken.
//! - A constant costs nothing, a name or a field 1, `has` what its operand costs.
//! - A list literal costs 10. `!`, `size`, `duration` and comparing numbers cost 1.
//! - Comparing texts costs a tenth of the shorter one, `startsWith` a tenth of its
//!   argument, `lowerAscii` a tenth of the text, `contains` the product of a tenth
//!   of each, `matches` a tenth of the text times a quarter of the pattern, `in` the
//!   length of the list; always rounded up.
//! - `&&` and `||` cost both sides, `?:` the condition and the dearer branch.
//! - `all` and `exists_one` cost their body as often as the list can be long.
//! - A text is as long as four times its `maxLength` (bytes), or as the longest word
//!   of its `enum`; a list as its `maxItems`. An object that is compared counts as
//!   all of its fields, which is more than the API server takes.
//! - A rule counts as often as its place can occur: the product of the `maxItems` of
//!   the lists around it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may"
)]

use cel::Program;
use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, LiteralValue, operators};
use serde_json::Value;
use weir_crds::Kind;

const LIMIT_OF_A_RULE: u64 = 10_000_000;
const LIMIT_OF_ALL: u64 = 100_000_000;

#[test]
fn every_rule_costs_at_most_half_of_what_one_may_and_all_half_of_what_all_may() {
    for kind in Kind::ALL {
        let mut rules = Vec::new();
        estimate(kind.schema(), kind.as_str(), 1, &mut rules);
        for (place, rule, cost) in &rules {
            assert!(
                *cost <= LIMIT_OF_A_RULE / 2,
                "{place}: {cost} of {LIMIT_OF_A_RULE} for {rule}"
            );
        }
        let total = rules
            .iter()
            .fold(0u64, |total, (_, _, cost)| total.saturating_add(*cost));
        println!(
            "{kind}: {} rules cost at most {total} of {LIMIT_OF_ALL}",
            rules.len()
        );
        assert!(
            total <= LIMIT_OF_ALL / 2,
            "{kind}: {total} of {LIMIT_OF_ALL}"
        );
    }
}

#[test]
fn the_estimate_grows_with_what_can_be_written() {
    let of = |schema: Value| {
        let mut rules = Vec::new();
        estimate(&schema, "", 1, &mut rules);
        rules.iter().map(|(_, _, cost)| *cost).sum::<u64>()
    };
    let text = |max: u64, rule: &str| serde_json::json!({ "type": "string", "maxLength": max, "x-kubernetes-validations": [{ "rule": rule }] });
    // self 1, the text of 400 bytes 40 times the pattern of 8 characters 2.
    assert_eq!(of(text(100, "self.matches('^[a-z]+$')")), 1 + 41 * 2);
    // Ten times as often in a list of ten.
    let list = serde_json::json!({ "type": "array", "maxItems": 10, "items": text(100, "self.matches('^[a-z]+$')") });
    assert_eq!(of(list), 10 * (1 + 41 * 2));
    // Without a bound there is no estimate below all limits.
    let unbounded = serde_json::json!({ "type": "array", "items": text(1, "self == 'a'") });
    assert!(of(unbounded) > LIMIT_OF_ALL);
}

/// Place, rule and cost of each rule below a schema whose place can occur
/// `times` times.
fn estimate(schema: &Value, place: &str, times: u64, found: &mut Vec<(String, String, u64)>) {
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let rule = rule["rule"].as_str().unwrap();
        let program =
            Program::compile(rule).unwrap_or_else(|error| panic!("{place}: {rule}: {error}"));
        let mut locals = vec![("self".to_owned(), Size::of(schema))];
        let cost = operand(&program.expression().expr, &mut locals).cost;
        found.push((
            place.to_owned(),
            rule.to_owned(),
            cost.saturating_mul(times),
        ));
    }
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        estimate(schema, &format!("{place}.{field}"), times, found);
    }
    if let Some(items) = schema.get("items") {
        let times = times.saturating_mul(schema["maxItems"].as_u64().unwrap_or(u64::MAX));
        estimate(items, &format!("{place}[]"), times, found);
    }
}

/// How large a value can be.
#[derive(Clone, Copy)]
struct Size<'a> {
    most: u64,
    /// Where its fields or items are described.
    schema: Option<&'a Value>,
}

/// An expression at its dearest, and its value at its largest.
struct Operand<'a> {
    cost: u64,
    size: Size<'a>,
}

impl<'a> Size<'a> {
    const SCALAR: Size<'static> = Size {
        most: 1,
        schema: None,
    };

    fn of(schema: &'a Value) -> Size<'a> {
        Size {
            most: largest(schema),
            schema: Some(schema),
        }
    }

    fn field(self, name: &str) -> Size<'a> {
        // A word that CEL keeps for itself is written __word__.
        let name = name
            .strip_prefix("__")
            .and_then(|name| name.strip_suffix("__"))
            .unwrap_or(name);
        let field = self
            .schema
            .and_then(|schema| schema["properties"].get(name));
        Size::of(field.unwrap_or_else(|| panic!("no field {name} in {:?}", self.schema)))
    }
}

fn largest(schema: &Value) -> u64 {
    let unbounded = u64::MAX;
    match schema["type"].as_str() {
        Some("array") => schema["maxItems"].as_u64().unwrap_or(unbounded),
        Some("object") => schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(_, field)| largest(field))
            .fold(0, u64::saturating_add),
        Some("string") => match (schema["maxLength"].as_u64(), schema["enum"].as_array()) {
            (Some(max), _) => max * 4,
            (None, Some(words)) => words
                .iter()
                .filter_map(Value::as_str)
                .map(|word| word.len() as u64)
                .max()
                .unwrap_or(0),
            (None, None) => unbounded,
        },
        Some("integer" | "boolean") => 1,
        _ => unbounded,
    }
}

fn operand<'a>(expr: &Expr, locals: &mut Vec<(String, Size<'a>)>) -> Operand<'a> {
    match expr {
        Expr::Literal(LiteralValue::String(text)) => Operand {
            cost: 0,
            size: Size {
                most: text.inner().chars().count() as u64,
                schema: None,
            },
        },
        Expr::Literal(_) => Operand {
            cost: 0,
            size: Size::SCALAR,
        },
        Expr::Ident(name) => {
            let size = locals
                .iter()
                .rev()
                .find(|(local, _)| local == name)
                .map(|(_, size)| *size);
            Operand {
                cost: 1,
                size: size.unwrap_or_else(|| panic!("unknown name {name}")),
            }
        }
        Expr::Select(select) => {
            let of = operand(&select.operand.expr, locals);
            if select.test {
                Operand {
                    cost: of.cost,
                    size: Size::SCALAR,
                }
            } else {
                Operand {
                    cost: of.cost + 1,
                    size: of.size.field(&select.field),
                }
            }
        }
        Expr::List(list) => {
            let cost = list
                .elements
                .iter()
                .map(|item| operand(&item.expr, locals).cost)
                .sum::<u64>();
            Operand {
                cost: cost + 10,
                size: Size {
                    most: list.elements.len() as u64,
                    schema: None,
                },
            }
        }
        Expr::Call(call) => called(call, locals),
        Expr::Comprehension(comprehension) => repeated(comprehension, locals),
        Expr::Unspecified | Expr::Map(_) | Expr::Struct(_) => {
            panic!("no rule uses {expr:?}: teach the estimate")
        }
    }
}

fn called<'a>(call: &CallExpr, locals: &mut Vec<(String, Size<'a>)>) -> Operand<'a> {
    let target = call
        .target
        .as_ref()
        .map(|target| operand(&target.expr, locals));
    let operands: Vec<Operand<'a>> = target
        .into_iter()
        .chain(
            call.args
                .iter()
                .map(|arg| operand(&arg.expr, locals))
                .collect::<Vec<_>>(),
        )
        .collect();
    let spent = operands
        .iter()
        .fold(0u64, |cost, operand| cost.saturating_add(operand.cost));
    let size = |index: usize| operands[index].size.most;
    let (cost, result) = match call.func_name.as_str() {
        operators::LOGICAL_AND | operators::LOGICAL_OR => (0, Size::SCALAR),
        operators::CONDITIONAL => {
            // Both branches are in `spent`: the cheaper one is not taken.
            let cheaper = operands[1].cost.min(operands[2].cost);
            return Operand {
                cost: spent - cheaper,
                size: Size::SCALAR,
            };
        }
        operators::EQUALS
        | operators::NOT_EQUALS
        | operators::LESS
        | operators::LESS_EQUALS
        | operators::GREATER
        | operators::GREATER_EQUALS => (traversed(size(0).min(size(1))), Size::SCALAR),
        operators::IN => (size(1), Size::SCALAR),
        operators::LOGICAL_NOT
        | operators::NOT_STRICTLY_FALSE
        | operators::ADD
        | "size"
        | "duration" => (1, Size::SCALAR),
        "startsWith" => (traversed(size(1)), Size::SCALAR),
        "lowerAscii" => (traversed(size(0)), operands[0].size),
        "contains" => (
            traversed(size(0)).saturating_mul(traversed(size(1))),
            Size::SCALAR,
        ),
        "matches" => (
            traversed(size(0) + 1).saturating_mul(size(1).div_ceil(4)),
            Size::SCALAR,
        ),
        other => panic!("no rule uses {other}: teach the estimate"),
    };
    Operand {
        cost: spent.saturating_add(cost),
        size: result,
    }
}

/// Going through a text once.
fn traversed(length: u64) -> u64 {
    length.div_ceil(10)
}

fn repeated<'a>(
    comprehension: &ComprehensionExpr,
    locals: &mut Vec<(String, Size<'a>)>,
) -> Operand<'a> {
    let range = operand(&comprehension.iter_range.expr, locals);
    let first = operand(&comprehension.accu_init.expr, locals);
    let items = range.size.schema.and_then(|schema| schema.get("items"));
    locals.push((comprehension.accu_var.clone(), first.size));
    locals.push((
        comprehension.iter_var.clone(),
        items.map_or(Size::SCALAR, Size::of),
    ));
    let body = operand(&comprehension.loop_cond.expr, locals).cost
        + operand(&comprehension.loop_step.expr, locals).cost;
    locals.pop();
    let result = operand(&comprehension.result.expr, locals);
    locals.pop();
    let cost = range.size.most.saturating_mul(body);
    Operand {
        cost: range
            .cost
            .saturating_add(first.cost)
            .saturating_add(cost)
            .saturating_add(result.cost),
        size: result.size,
    }
}
