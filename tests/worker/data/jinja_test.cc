// Limits, errors and host access of the template interpreter.
#include <string>

#include "base/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/jinja/template.h"

namespace longhaul::data::jinja {
namespace {

using testing::HasSubstr;

absl::StatusOr<std::string> Render(const std::string& source, const RenderOptions& options = {}) {
  const auto parsed = Template::Parse(source);
  if (!parsed.ok()) return parsed.status();
  auto rendered = parsed->Render({}, options);
  if (!rendered.ok()) return rendered.status();
  return rendered->text;
}

std::string Reason(const absl::StatusOr<std::string>& rendered) { return ErrorReason(rendered.status()); }

std::string Repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

TEST(JinjaTest, AnErrorNamesItsLine) {
  for (const char* source : {"ok\n\n{{ 1 + }}", "ok\n\n{% if %}", "ok\n\n{% nonsense %}", "ok\n\n{{ nope.a }}",
                             "ok\n\n{{ 1 / 0 }}", "ok\n\n{{ 'a' + 1 }}"}) {
    const auto rendered = Render(source);
    ASSERT_FALSE(rendered.ok()) << source;
    EXPECT_THAT(std::string(rendered.status().message()), HasSubstr("line 3")) << source;
  }
}

TEST(JinjaTest, RaiseExceptionSaysItsText) {
  const auto rendered = Render("{{ raise_exception('roles must alternate') }}");
  EXPECT_THAT(std::string(rendered.status().message()), HasSubstr("roles must alternate"));
  EXPECT_EQ(Reason(rendered), "TEMPLATE_ERROR");
}

TEST(JinjaTest, WhatIsNotKnownIsNamed) {
  const auto rendered = Render("{{ 'a' | urlize }}");
  EXPECT_EQ(rendered.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(rendered.status().message()), HasSubstr("urlize"));
  EXPECT_FALSE(Render("{% include 'x' %}").ok());
  EXPECT_FALSE(Render("{% import 'os' as os %}").ok());
  EXPECT_FALSE(Render("{% extends 'x' %}").ok());
}

TEST(JinjaTest, ThereIsNoWayToTheHost) {
  for (const char* source : {"{{ ''.__class__.__mro__ }}", "{{ self._TemplateReference__context }}",
                             "{{ cycler.__init__.__globals__ }}", "{{ namespace.__init__ }}x{{ namespace.__init__() }}",
                             "{{ ''.format.__self__.x }}", "{{ range.__call__(1) }}"}) {
    const auto rendered = Render(source);
    if (rendered.ok()) {
      EXPECT_EQ(rendered->find("class"), std::string::npos) << source << ": " << *rendered;
    }
  }
}

TEST(JinjaTest, StepsAreBounded) {
  RenderOptions options;
  options.limits.max_steps = 10'000;
  const auto rendered = Render("{% for i in range(1000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}", options);
  EXPECT_EQ(rendered.status().code(), absl::StatusCode::kResourceExhausted) << rendered.status();
  EXPECT_EQ(Reason(rendered), "TEMPLATE_LIMIT");
}

TEST(JinjaTest, OutputAndValuesAreBounded) {
  RenderOptions options;
  options.limits.max_bytes = 1 << 20;
  for (const char* source :
       {"{% for i in range(100000) %}0123456789012345678901234567890123456789{% endfor %}", "{{ 'x' * 100000000 }}",
        "{{ [1] * 100000000 }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'.replace('', 'bbbbbbbbbbbbbbbbbbbbbbbb' * 10000) }}",
        "{{ range(1000000000) | list }}"}) {
    const auto rendered = Render(source, options);
    EXPECT_FALSE(rendered.ok()) << source;
  }
}

TEST(JinjaTest, DepthIsBounded) {
  EXPECT_FALSE(Render("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}").ok());
  EXPECT_FALSE(Render("{{ " + Repeated("(", 5000) + "1" + Repeated(")", 5000) + " }}").ok());
  EXPECT_FALSE(Render("{{ " + Repeated("[", 5000) + Repeated("]", 5000) + " }}").ok());
  EXPECT_FALSE(Render("{{ " + Repeated("not ", 5000) + "1 }}").ok());
  EXPECT_FALSE(Render("{{ " + Repeated("-", 5000) + "1 }}").ok());
  EXPECT_FALSE(Render(Repeated("{% if 1 %}", 5000) + Repeated("{% endif %}", 5000)).ok());
  // A nested value cannot exhaust the stack when it is printed, compared or destroyed.
  Render("{% set ns = namespace(s=[]) %}{% for i in range(100000) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}")
      .IgnoreError();
  Render(
      "{% set ns = namespace(s=[]) %}{% for i in range(100000) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s == ns.s }}")
      .IgnoreError();
}

TEST(JinjaTest, AHugeTemplateIsRefused) {
  EXPECT_FALSE(Template::Parse(std::string(limits::kMaxTemplateBytes + 1, 'x')).ok());
}

TEST(JinjaTest, TheTimeIsTheCallersOrNone) {
  EXPECT_EQ(Render("{{ strftime_now is defined }}").value(), "False");
  RenderOptions options;
  options.now_seconds = 1'700'000'000;
  EXPECT_EQ(Render("{{ strftime_now('%d %b %Y') }}", options).value(), "14 Nov 2023");
}

TEST(JinjaTest, IntegersDoNotOverflow) {
  for (const char* source :
       {"{{ 9223372036854775807 + 1 }}", "{{ 9223372036854775807 * 2 }}", "{{ -9223372036854775807 - 2 }}",
        "{{ 2 ** 64 }}", "{{ 2 ** 1000000000 }}", "{{ 99999999999999999999 }}",
        "{{ (-9223372036854775807 - 1) // -1 }}", "{{ (-9223372036854775807 - 1) % -1 }}",
        "{{ -(-9223372036854775807 - 1) }}", "{{ (-9223372036854775807 - 1) | abs }}"}) {
    const auto rendered = Render(source);
    if (rendered.ok()) {
      EXPECT_THAT(*rendered, testing::AnyOf("0", testing::HasSubstr("e+"))) << source;
    }
  }
}

}  // namespace
}  // namespace longhaul::data::jinja
