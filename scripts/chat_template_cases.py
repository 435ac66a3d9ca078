#!/usr/bin/env python3
"""Writes what bitnet-infer/tests/suite/chat_templates.rs compares with: templates, and the texts that transformers makes of them.

Each construct of the template language is a template of its own, rendered with one conversation. `null` stands for an error. The
templates of published models come from the folder that is named second; of these the texts alone are written.

    pip install transformers jinja2
    python3 scripts/chat_template_cases.py bitnet-infer/tests/fixtures/chat_templates.json ../shared/data/chat-templates
"""
import datetime
import json
import os
import sys

import transformers
from transformers.utils import chat_template_utils as templates

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}
TALK = [
    {"role": "system", "content": " Be kind. "},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello, I'm \"x\"!\n"},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
    {"role": "assistant", "content": "It rains."},
]
PLAIN = [message for message in TALK[:3]]
SHORT = [message for message in TALK[1:4]]
CALLS = [message for message in TALK[1:]]

# Each string is one template.
CONSTRUCTS = {
    "loops": [
        "{% for m in messages %}{{ loop.previtem.role }}>{{ m.role }}>{{ loop.nextitem.role if not loop.last }} {% endfor %}",
        "{% for m in messages %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
        "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }} {% endfor %}",
        "{% for m in messages %}{{ loop.cycle('a', 'b') }}{{ loop.depth }}{{ loop.depth0 }}{% endfor %}",
        "{% for m in messages %}{% if loop.changed(m.role == 'user') %}*{% endif %}{{ m.role }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% else %}none{% endfor %}",
        "{% for m in [] %}x{% else %}none{% endfor %}",
        "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
        "{% for key, value in messages[1].items() %}{{ key }}={{ value }};{% endfor %}",
        "{% for key in messages[1] %}{{ key }};{% endfor %}",
        "{% for key, value in {'b': 1, 'a': 2} | dictsort %}{{ key }}={{ value }};{% endfor %}",
        "{% for i in range(3) %}{{ i }}{% endfor %}{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}{{ range(3) | list }}",
        "{% for item in [[1, [2, [3]]]] recursive %}{{ item[0] }}{% if item[1] is iterable %}({{ loop([item[1]]) }}){% endif %}{% endfor %}",
        "{% for a in [1, 2] %}{% for b in [3, 4] %}{{ loop.index }}{{ a }}{{ b }} {% endfor %}{% endfor %}",
        "{% for c in 'abc' %}{{ c }}-{% endfor %}",
        "{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}",
        "{% for m in messages %}{% set outer = loop %}{% for x in [1] %}{{ outer.index }}{% endfor %}{% endfor %}",
        "{{ loop is defined }}",
    ],
    "scopes": [
        "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}",
        "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s + m.role[0] %}{% endfor %}{{ ns.n }}{{ ns.s }}",
        "{% set ns = namespace() %}{% set ns.x = 1 %}{{ ns.x }}{{ ns.y }}",
        "{% set ns = namespace({'a': 1}) %}{{ ns.a }}",
        "{% set x %}a{{ 1 + 1 }}b{% endset %}{{ x | upper }}",
        "{% set x | upper %}abc{% endset %}{{ x }}",
        "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
        "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
        "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}",
        "{% macro f(a, b='x') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(b=3, a=4) }}",
        "{% macro f(a) %}{{ a.b }}{{ a is defined }}{% endmacro %}{{ f({}) }}",
        "{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}in{% endcall %}",
        "{% macro f(l) %}{% for x in l %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(x) f([1, 2]) %}<{{ x }}>{% endcall %}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ f() }}|",
        "{% macro f(m) %}{% if m > 0 %}{{ m }}{{ f(m - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
        "{% filter upper %}abc{{ 'd' }}{% endfilter %}",
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{{ rest | length }}",
    ],
    "generation": [
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}",
        "a {%- generation -%}  b  {%- endgeneration -%} c",
        "a\n{% generation %}\nb\n{% endgeneration %}\nc",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
        "{% set ns = namespace(n=0) %}{% generation %}{% set ns.n = 2 %}{% endgeneration %}{{ ns.n }}",
        "{%   generation%}a{%endgeneration   %}",
        "{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}",
        "{% generation %}{% generation %}a{% endgeneration %}{% endgeneration %}",
        "{% for m in messages %}{%- generation %} {{ m.role }}{{ loop.last }}{% endgeneration %}{% endfor %}",
        "{% generation %}a",
        "a{% endgeneration %}",
    ],
    "none and what is absent": [
        "{{ tools is none }}{{ tools is not none }}{{ tools is defined }}{{ documents is none }}{{ documents is defined }}",
        "{% if tools %}t{% else %}no{% endif %}{% if documents %}d{% else %}no{% endif %}",
        "{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools is none }}",
        "{{ none }}{{ None }}{{ true }}{{ True }}{{ false }}{{ False }}",
        "{{ x }}|{{ x is defined }}{{ x is undefined }}{{ x is none }}",
        "{{ messages[0].nothing }}|{{ messages[0]['nothing'] }}|{{ messages[99] }}|",
        "{{ messages[0].nothing.more }}",
        "{{ x.y }}",
        "{{ x['y'] }}",
        "{{ x[0] }}",
        "{{ x() }}",
        "{{ messages[0].nothing() }}",
        "{{ messages[0].content.nothing() }}",
        "{{ messages[0].content.nothing }}|",
        "{{ x | length }}{{ x | upper }}{{ x | trim }}{{ x | list }}{{ x | join }}{{ x | string }}|",
        "{{ x + 'a' }}",
        "{{ 'a' + x }}",
        "{{ 'a' ~ x ~ 1 ~ none ~ true }}",
        "{{ x == none }}{{ x == x }}{{ x == y }}{{ x != 'a' }}{{ none == false }}",
        "{{ -x }}",
        "{% for a in x %}a{% else %}e{% endfor %}",
        "{{ 'a' in x }}",
        "{{ not x }}{{ x and 1 }}|{{ x or 2 }}",
        "{{ x | default('d') }}{{ none | default('d') }}{{ none | default('d', true) }}{{ '' | d('e', boolean=true) }}",
        "{{ x | tojson }}",
        "{{ x | int }}",
        "{{ x | first }}|{{ [] | first }}|{{ [] | last }}|",
        "{{ 'a' if false }}|{{ 'a' if false else 'b' }}",
        "{{ messages[4].content }}|{{ messages[4].content is defined }}{{ 'content' in messages[4] }}{{ messages[4].content is none }}",
        "{{ messages[4].content | trim }}|{{ messages[4]['content'] | length }}",
        "{{ '' + messages[4].content }}",
        "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}",
    ],
    "operators": [
        "{{ 'a %s' % 'b' }}",
        "{{ '%s and %s' % ('a', 1) }}{{ '%d-%05.2f-%x' % (7, 3.14159, 255) }}",
        "{{ '%(role)s: %(content)s' % messages[1] }}",
        "{{ '%s%%' % 5 }}{{ '%5s|%-5s|' % ('a', 'b') }}{{ '%s' % none }}{{ '%s' % [1, 'a'] }}",
        "{{ '%s' % 'a' + 'b' }}{{ 'a' + '%s' % 'b' }}{{ '%s' % messages[0].content | trim }}",
        "{{ '<%s>' % ('a' if true else 'b') }}",
        "{% set f = '%s!' %}{{ f % 'a' }}{{ (f + f) % (1, 2) }}{{ f % 'a' % () }}",
        "{{ '%s' % ('a', 'b') }}",
        "{{ '%d' % 'a' }}",
        "{{ 7 % 3 }}{{ -7 % 3 }}{{ 7.5 % 2 }}{{ 7 // 2 }}{{ -7 // 2 }}{{ 7 / 2 }}{{ 4 / 2 }}{{ 2 ** 10 }}{{ 10 * 3 % 4 }}{{ 10 % 4 * 3 }}",
        "{% if loop_index is not defined and 3 % 2 == 1 %}odd{% endif %}{% for m in messages %}{{ loop.index0 % 2 }}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ 'a' * 3 }}{{ [1] * 2 }}{{ [1] + [2] }}{{ (1,) + (2,) }}",
        "{{ 1 + 2 * 3 }}{{ (1 + 2) * 3 }}{{ 2 - -1 }}{{ -2 ** 2 }}{{ 1 ~ 2 + 3 }}",
        "{{ 'a' in 'abc' }}{{ 'x' not in 'abc' }}{{ 1 in [1] }}{{ 'role' in messages[0] }}{{ 'x' in messages[0] }}",
        "{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}{{ 1 == 1.0 }}{{ 'a' < 'b' }}{{ [1, 2] < [1, 3] }}{{ 'a' == 1 }}",
        "{{ 1 and 2 }}{{ 0 or 'a' }}{{ not 1 }}{{ '' and 1 }}|{{ none or false }}",
        "{{ 1 + 'a' }}",
        "{{ 'a' + 1 }}",
        "{{ 1.5 + 1 }}{{ 0.1 + 0.2 }}{{ 1e20 }}{{ 1e3 }}{{ 1.0 }}{{ 123456789012345678901234567890 }}{{ 1_000 }}",
        "{{ 'a' 'b' }}",
        "{{ 1 if true else 2 if false else 3 }}",
        "{{ (1 != 2) != (3 == 4) }}",
    ],
    "slices and items": [
        "{{ messages[1:] | length }}{{ messages[:2] | length }}{{ messages[::2] | length }}{{ messages[-1].role }}{{ messages[-2:][0].role }}",
        "{{ messages[::-1][0].role }}{{ 'abcdef'[1:4] }}{{ 'abcdef'[::-1] }}{{ 'abc'[-1] }}{{ 'abc'[:-1] }}{{ 'abc'[5:] }}|",
        "{{ messages[1].role }}{{ messages[1]['role'] }}{{ messages.1.role }}{{ (messages | first).role }}{{ (messages | last)['role'] }}",
        "{% set d = {'a': 1, 'b': {'c': [1, 2]}} %}{{ d.b.c[1] }}{{ d['b']['c'] | length }}{{ d.get('x') }}{{ d.get('x', 5) }}{{ d.keys() | list }}{{ d.values() | list }}",
        "{% set d = dict(a=1, b=2) %}{{ d }}{{ dict(d, c=3) }}{{ d.items() | list }}",
        "{{ messages[4].tool_calls[0].function.arguments.city }}{{ messages[4]['tool_calls'][0]['function']['arguments']['days'] + 1 }}",
        "{{ messages[5].tool_call_id }}{{ messages[5].name }}{{ messages[5].role }}",
        "{{ {'a': 1}.b }}|{{ {'items': 1}['items'] }}|",
        "{% set l = [1, 2] %}{% set _ = l.append(3) %}{{ l }}",
        "{% set d = {} %}{% set _ = d.update({'a': 1}) %}{{ d }}",
        "{{ [1, 2, 2].count(2) }}{{ [1, 2].index(2) }}",
        "{{ (1, 2)[0] }}{{ (1,) }}{{ () }}{{ [] }}{{ {} }}",
    ],
    "what is printed": [
        "{{ [1, 'a', none, true, 1.5, \"it's\", 'q\"', 'é\n'] }}",
        "{{ {'a': 1, 'b': [none], 'c': {'d': 'e'}} }}",
        "{{ (1, 'a') }}{{ messages[1] }}",
        "{{ messages[4].tool_calls }}",
        "{{ 'a\\n\\t\\x41\\u00e9\\'\\\\b' }}{{ \"a\\\"\" }}",
        "{{ '<b>&\"' }}{{ '<b>' | e }}{{ '<b>' | escape | string }}{{ '<b>' | safe }}",
        "{{ 1e16 }}|{{ 1e15 }}|{{ 1.5e-7 }}|{{ 100000.0 }}|{{ 0.1 }}|{{ 3.0 * 2 }}",
    ],
    "json": [
        "{{ messages[1] | tojson }}{{ messages[4].tool_calls | tojson }}",
        "{{ {'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=True) }}",
        "{{ {'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=true, indent=2) }}",
        "{{ {'b': [1, 2], 'a': 2} | tojson(separators=(',', ':')) }}",
        "{{ {'b': [1, 2], 'a': 2} | tojson(separators=[' , ', ' : ']) }}",
        "{{ {'b': [1, {'c': []}], 'a': {}} | tojson(indent=4) }}{{ [] | tojson(indent=2) }}",
        "{{ {'b': [1, 2]} | tojson(indent=0) }}{{ {'b': [1]} | tojson(indent=none) }}{{ {'b': [1]} | tojson(indent='\\t') }}",
        "{{ {'b': [1, 2]} | tojson(indent=2, separators=(',', ': ')) }}{{ {'b': [1, 2]} | tojson(indent=1, separators=(',', ':')) }}",
        "{{ 'é😀\\u2028' | tojson }}{{ 'é😀' | tojson(ensure_ascii=True) }}{{ {'é': 'é'} | tojson(true) }}",
        "{{ '<a href=\"x\">&\\'\\\\/\\n\\t\\x01\\x7f' | tojson }}",
        "{{ 1.0 | tojson }}{{ 1e16 | tojson }}{{ 1e-7 | tojson }}{{ 0.1 | tojson }}{{ true | tojson }}{{ none | tojson }}{{ 12345678901234567890 | tojson }}",
        "{{ (1, 'a') | tojson }}{{ {1: 2, none: 3, true: 4} | tojson }}",
        "{{ {'a': 1} | tojson(unknown=1) }}",
        "{{ messages | map(attribute='role') | list | tojson }}",
    ],
    "filters": [
        "{{ -3 | abs }}{{ 'abc' | capitalize }}{{ 'aB cD' | title }}{{ 'AbC' | lower }}{{ 'AbC' | upper }}{{ 'a' | center(5) }}|",
        "{{ [1, 2, 3, 4, 5] | batch(2) | list }}{{ [1, 2, 3] | batch(2, 0) | list }}{{ [1, 2, 3, 4, 5] | slice(2) | list }}",
        "{{ {'b': 1, 'A': 2} | dictsort }}{{ {'b': 1, 'A': 2} | dictsort(by='value', reverse=true) }}",
        "{{ [3, 1, 2] | sort }}{{ ['b', 'A'] | sort }}{{ ['b', 'A'] | sort(case_sensitive=true) }}{{ [1, 2] | sort(reverse=true) }}{{ messages | sort(attribute='role') | map(attribute='role') | join(',') }}",
        "{{ [1, 2, 1, 'a', 'A'] | unique | list }}{{ [3, 1] | min }}{{ [3, 1] | max }}{{ [1, 2] | sum }}{{ [{'a': 1}, {'a': 2}] | sum(attribute='a', start=10) }}",
        "{{ 'a\\nb\\n\\nc' | indent }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent(width=2, blank=true) }}|{{ 'a\\nb' | indent('> ') }}",
        "{{ '3' | int }}{{ 'x' | int }}{{ 'x' | int(5) }}{{ '1.5' | float }}{{ 3.9 | int }}{{ 'x' | float }}{{ '0x1f' | int(base=16) }}",
        "{{ [1, 2] | join }}{{ [1, 2] | join(', ') }}{{ messages | join('-', attribute='role') }}{{ 'abc' | join('-') }}{{ ['a', none, x] | join('-') }}",
        "{{ 'abc' | first }}{{ [1, 2] | last }}{{ 'abc' | list }}{{ 'abc' | reverse }}{{ [1, 2] | reverse | list }}{{ 'abc' | length }}{{ {'a': 1} | count }}",
        "{{ messages | map('length') | list }}{{ ['a', 'b'] | map('upper') | join }}{{ messages | map(attribute='nothing', default='d') | join }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | selectattr('tool_calls') | list | length }}{{ messages | selectattr('tool_calls', 'defined') | list | length }}{{ messages | rejectattr('role', '==', 'user') | list | length }}",
        "{{ [1, 2, 3] | select('odd') | list }}{{ [1, 2, 3] | reject('odd') | list }}{{ [0, 1, ''] | select | list }}{{ [1, 2] | select('>', 1) | list }}{{ ['a', 'b'] | reject('equalto', 'a') | list }}{{ ['a'] | select('in', ['a']) | list }}",
        "{% for group in messages | groupby('role') %}{{ group.grouper }}{{ group.list | length }};{% endfor %}{% for role, list in messages | groupby('role') %}{{ role }}{{ list | length }};{% endfor %}",
        "{{ 'aXbX' | replace('X', '-') }}{{ 'aXbX' | replace('X', '-', 1) }}{{ 2.567 | round }}{{ 2.567 | round(2) }}{{ 2.4 | round(method='ceil') }}{{ 2 | round }}",
        "{{ '  a ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ 'a b c' | wordcount }}{{ 'hello world foo' | truncate(8) }}{{ 'hello' | truncate(4, true, '') }}",
        "{{ 'a b&c/é' | urlencode }}{{ {'a': 1, 'b': 'x y'} | urlencode }}",
        "{{ {'a': 1, 'b': 2} | items | list }}{{ {'a': 1} | list }}{{ 5 | string | length }}{{ '%s-%s' | format('a', 1) }}",
        "{{ messages | map(attribute='content') | select('string') | map('trim') | join('|') }}",
        "{{ 'a' | nothing }}",
        "{{ none | trim }}{{ 5 | trim }}{{ none | upper }}{{ 5 | string ~ 1 }}{{ true | string }}{{ none | string }}",
        "{{ none | length }}",
        "{{ 5 | length }}",
    ],
    "tests": [
        "{{ true is boolean }}{{ f is callable }}{{ 4 is divisibleby(2) }}{{ 4 is divisibleby 2 }}{{ 4 is even }}{{ 4 is odd }}{{ 1 is eq(1) }}{{ 1 is equalto 1 }}{{ 2 is gt 1 }}{{ 1 is lt(2) }}{{ 1 is le 1 }}{{ 1 is ge 2 }}{{ 1 is ne 2 }}",
        "{{ 1.0 is float }}{{ 1 is integer }}{{ 1 is number }}{{ true is number }}{{ true is integer }}{{ 'a' is string }}{{ 'a' is sequence }}{{ [] is sequence }}{{ {} is mapping }}{{ {} is sequence }}{{ none is none }}{{ 'a' is iterable }}{{ {} is iterable }}{{ 5 is iterable }}",
        "{{ 'a' is in 'abc' }}{{ 1 is in [2] }}{{ 'a' is lower }}{{ 'A' is upper }}{{ true is true }}{{ false is false }}{{ 1 is true }}{{ none is sameas none }}{{ x is defined }}{{ 'upper' is filter }}{{ 'even' is test }}{{ '' is escaped }}",
        "{{ messages is iterable }}{{ messages is mapping }}{{ messages is string }}{{ messages[0].content is string }}{{ messages[0].content is iterable and messages[0].content is not string }}{{ messages[4].tool_calls is sequence }}",
        "{{ 'a' is not string }}{{ not 'a' is string }}{{ x is not defined and true }}{{ messages[0].x is defined or messages[0].role is defined }}",
        "{{ 1 is nothing }}",
    ],
    "methods of strings": [
        "{{ ' a '.strip() }}|{{ 'xax'.strip('x') }}{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'a\\n\\n'.rstrip('\\n') }}|{{ 'xyaxy'.lstrip('xy') }}",
        "{{ 'a,b,c'.split(',') }}{{ 'a b  c'.split() }}{{ 'a,b,c'.split(',', 1) }}{{ 'a,b,c'.rsplit(',', 1) }}{{ 'a</think>b'.split('</think>')[-1] }}{{ ''.split() }}{{ ''.split(',') }}",
        "{{ 'a\\nb\\r\\nc'.splitlines() }}{{ 'a=b=c'.partition('=') }}{{ 'a=b=c'.rpartition('=') }}",
        "{{ 'abc'.startswith('a') }}{{ 'abc'.startswith(('x', 'a')) }}{{ 'abc'.endswith('c') }}{{ 'abc'.endswith(('x', 'bc')) }}{{ 'abc'.startswith('b', 1) }}",
        "{{ 'abcb'.find('b') }}{{ 'abcb'.rfind('b') }}{{ 'abc'.find('x') }}{{ 'abc'.index('c') }}{{ 'abcb'.count('b') }}{{ 'äbc'.find('c') }}",
        "{{ 'aXX'.replace('X', '-') }}{{ 'aXX'.replace('X', '-', 1) }}{{ 'ab'.replace('', '.') }}{{ '-'.join(['a', 'b']) }}{{ ''.join(messages | map(attribute='role')) }}",
        "{{ 'abc def'.title() }}{{ \"they're\".title() }}{{ 'aBC'.capitalize() }}{{ 'aBc'.swapcase() }}{{ 'ABC'.lower() }}{{ 'abc'.upper() }}",
        "{{ '5'.zfill(3) }}{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3) }}|{{ 'a'.center(4, '*') }}|{{ 'a\\tb'.expandtabs(4) }}",
        "{{ 'prefix-a'.removeprefix('prefix-') }}{{ 'a.txt'.removesuffix('.txt') }}{{ 'a'.removeprefix('b') }}",
        "{{ '12'.isdigit() }}{{ 'a1'.isalnum() }}{{ 'ab'.isalpha() }}{{ '  '.isspace() }}{{ 'ab'.islower() }}{{ 'AB'.isupper() }}{{ 'Ab'.istitle() }}{{ '1'.isnumeric() }}{{ '1'.isdecimal() }}{{ 'a'.isascii() }}{{ 'a_1'.isidentifier() }}",
        "{{ '{} {}'.format('a', 1) }}{{ '{a}-{b}'.format(a=1, b='x') }}{{ '{0}{1}{0}'.format('a', 'b') }}{{ '{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}'.format('a', 'b', 'c', 7, 3.14159) }}{{ '{{}}'.format() }}",
        "{{ 'abc'.nothing() }}",
        "{{ messages[2].content.strip().split('!')[0] }}{{ messages[0]['content'].strip() | upper }}",
        "{{ 'a' .upper() }}{{ ('a' + 'b').upper() }}{{ 'a'.upper().lower() }}",
    ],
    "white space and syntax": [
        "a\n{% if true %}\nb\n{% endif %}\nc\n",
        "a\n   {% if true %}   \n  b\n   {%- endif -%}   \nc",
        "  {%+ if true %}a{% endif %}\n  {{ 'b' }}\n  {# c #}\n  d\n\n",
        "a  {{- 'b' -}}  c {{ 'd' }}\n{{ 'e' }}\n",
        "{% raw %}{{ x }}{% endraw %}{# comment {{ x }} #}a{#- b -#} c",
        "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\n",
        "{{ 'a\\r\\nb' }}{{ \"a\nb\" }}",
        "{% if true -%}\n\n  a\n\n{%- endif %}",
        "{{ {'a': {'b': 1}} }}{{ {'a': 1}}}",
        "{% if false %}a{% elif 1 == 1 %}b{% else %}c{% endif %}",
        "{% if (1 == 1) and not (2 == 3 or 4 == 5) %}a{% endif %}",
        "{%- set x = 'a' -%}\n\n{{- x }} {{ x -}}\n\n",
        "{{ raise_exception('no') }}",
        "{% do x %}",
        "{% include 'x' %}",
        "{{ 'a' }",
        "{{ strftime_now('%Y') | length }}{{ strftime_now is defined }}",
        "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{% set j = joiner(', ') %}{{ j() }}{{ j() }}",
        "{{ [1, 2, 3,] }}{{ {'a': 1,} }}{{ [x for x in [1]] }}",
        "{% block a %}b{% endblock %}",
        "{{ 'é' }}中{{ '😀' | length }}{{ '😀é'[0] }}",
    ],
    # What chats have no use for. The test sees it refused.
    "refused": [
        "{{ '%r' % 'a' }}",
        "{{ 'a b c d' | wordwrap(3) }}",
        "{{ '<b>x</b>  y' | striptags }}",
        "{{ 1000000 | filesizeformat }}",
        "{{ {'class': 'a'} | xmlattr }}",
        "{{ 'ß'.casefold() }}",
        "{{ messages[0] | attr('role') }}|",
        "{{ {'a': 1} | pprint }}",
    ],
    # Errors to transformers. The test sees what is written instead.
    "lenient": [
        "{{ x > 1 }}",
        "{{ messages | map(attribute='role') | tojson }}",
    ],
}


def cases():
    for kind, sources in CONSTRUCTS.items():
        for source in sources:
            yield {"construct": kind, "template": source, "messages": "talk", "add_generation_prompt": True}


def published(folder):
    for name in sorted(os.listdir(folder)):
        for messages in TALKS:
            for prompt in (False, True):
                yield {"construct": name, "file": name, "messages": messages, "add_generation_prompt": prompt}


TALKS = {"talk": TALK, "plain": PLAIN, "short": SHORT, "calls": CALLS}


def rendered(case, source):
    messages = templates._normalize_chat_messages(TALKS[case["messages"]])
    try:
        texts, _ = templates.render_jinja_template([messages], chat_template=source, add_generation_prompt=case["add_generation_prompt"],
                                                   bos_token="<s>", eos_token="</s>")
    except Exception as error:  # Whatever the template does, it is an error to transformers.
        print(f"{source[:100]!r}: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    return texts[0].replace(datetime.datetime.now().strftime("%d %b %Y"), "TODAY")


def main():
    out = []
    for case in cases():
        out.append(case | {"expected": rendered(case, case["template"])})
    for case in published(sys.argv[2]):
        with open(os.path.join(sys.argv[2], case["file"]), encoding="utf-8") as file:
            out.append(case | {"expected": rendered(case, file.read())})
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        text = ",\n".join(json.dumps(case, ensure_ascii=False) for case in out)
        talks = json.dumps(TALKS, ensure_ascii=False)
        file.write(f'{{"made_with": "transformers {transformers.__version__}",\n"conversations": {talks},\n"cases": [\n{text}\n]}}\n')
    print(f"{len(out)} cases, {sum(case['expected'] is None for case in out)} of them errors")


main()
