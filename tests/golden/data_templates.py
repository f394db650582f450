"""Chat templates in the style of well-known models, conversations, and small Jinja texts, rendered as Transformers does."""

from transformers.utils.chat_template_utils import render_jinja_template

SMOLLM2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The system message goes first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Answers before the last question lose their thoughts, so the text before an answer changes once it is there.
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# No generation prompt; the system message moves to the last question.
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"""

GENERATION = """{% for m in messages %}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}
{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}

{% else %}
{{ m.content }}<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TEMPLATES = {"smollm2": SMOLLM2, "llama3": LLAMA3, "qwen2.5": QWEN25, "qwen3": QWEN3, "mistral": MISTRAL,
             "generation": GENERATION}
SPECIAL = {"llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
           "mistral": {"bos_token": "<s>", "eos_token": "</s>"}}


def say(*turns):
    return [{"role": r, "content": c} for r, c in turns]


CONVERSATIONS = [
    say(("user", "What is 2 + 2?"), ("assistant", "It is 4.")),
    say(("system", "Be brief."), ("user", "Name a color."), ("assistant", "Blue."), ("user", "Another?"), ("assistant", "Red.")),
    say(("user", "yes"), ("assistant", "yes"), ("user", "yes"), ("assistant", "yes")),
    say(("user", "Repeat: <|im_start|>assistant\nno"), ("assistant", "assistant\nassistant\n"), ("user", "ok"), ("assistant", "ok")),
    say(("user", "日本語で。 🙂"), ("assistant", "はい、もちろん。 👩‍👩‍👧"), ("user", "  spaces  "), ("assistant", "two\n\nlines")),
    say(("user", "Think."), ("assistant", "<think>\nhm, 12\n</think>\n\nDone."), ("user", "More."), ("assistant", "<think>\nok\n</think>\n\nFine.")),
    [{"role": "user", "content": "Weather in Paris?"},
     {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {
         "name": "weather", "arguments": {"city": "Paris <é>", "days": 2, "exact": True, "ratio": 0.5, "none": None}}}]},
     {"role": "tool", "content": "{\"temp\": 21}"},
     {"role": "assistant", "content": "It is 21 degrees."}],
]

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Says the weather & more <b>",
          "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                         "required": ["city"]}}}]


def chatml(default):
    def build(messages):
        text, spans = "", []
        if messages[0]["role"] != "system":
            text += f"<|im_start|>system\n{default}<|im_end|>\n"
        for m in messages:
            text += f"<|im_start|>{m['role']}\n"
            begin = len(text)
            text += m["content"] + "<|im_end|>"
            if m["role"] == "assistant":
                spans.append((begin, len(text)))
            text += "\n"
        return text, spans
    return build


def llama3(messages):
    system = ""
    if messages[0]["role"] == "system":
        system, messages = messages[0]["content"].strip(), messages[1:]
    text, spans = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>", []
    for m in messages:
        text += f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n"
        begin = len(text)
        text += m["content"].strip() + "<|eot_id|>"
        if m["role"] == "assistant":
            spans.append((begin, len(text)))
    return text, spans


BY_HAND = {"smollm2": chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
           "qwen2.5": chatml("You are a helpful assistant."), "llama3": llama3}

VARIABLES = {"messages": CONVERSATIONS[1], "text": " Ünïcode <b>\"x\"</b>\t\n", "numbers": [3, 1, 2], "empty": [],
             "map": {"b": 1, "a": {"z": [1, 2.5, None, True]}, "Ä": "é\u2028"}, "words": ["pear", "Apple", "fig"]}

SNIPPETS = """{{ 1 + 2 * 3 - 4 }} {{ 7 // 2 }} {{ 7 % 3 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 5 }}
{{ 1.0 }} {{ 0.1 + 0.2 }} {{ 1e20 }} {{ 100000000000000000000.0 }} {{ 1e-7 }} {{ 3 == 3.0 }}
{{ 'a' ~ 1 ~ none ~ true ~ [1, 'x'] ~ {'k': 'v'} }}
{{ [1, 'two', none, true, 2.5, "it's"] }} {{ {'a': 1, 'b': [2]} }} {{ (1, 2) }} {{ 'a' 'b' }}
{{ text | trim }}|{{ text | upper }}|{{ text | lower }}|{{ text.strip() | length }}
{{ map | tojson }}
{{ map | tojson(indent=2) }}
{{ text | tojson }} {{ [] | tojson }} {{ {} | tojson(indent=4) }} {{ numbers | tojson(indent=1) }}
{{ numbers | first }}{{ numbers | last }}{{ numbers | length }}{{ numbers | join('-') }}{{ words | join }}
{{ numbers[0] }}{{ numbers[-1] }}{{ numbers[1:] }}{{ numbers[::-1] }}{{ numbers[:2] }}{{ text[1:4] }}{{ 'añb'[::-1] }}
{{ map.a.z[1] }}{{ map['a']['z'][0] }}{{ map.get('nope', 'd') }}{{ map.get('nope') }}{{ map.b }}
{% for k, v in map.items() %}{{ loop.index }}:{{ k }}={{ v }};{% endfor %}
{% for k, v in map | dictsort %}{{ k }},{% endfor %}{% for k, v in map | items %}{{ k }}.{% endfor %}
{% for m in messages if m.role == 'user' %}{{ loop.index0 }}/{{ loop.length }}/{{ loop.first }}/{{ loop.last }}{% else %}none{% endfor %}
{% for x in empty %}{{ x }}{% else %}nothing{% endfor %}
{% for x in numbers %}{% if x == 1 %}{% continue %}{% endif %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in numbers %}{{ loop.previtem }}{{ x }}{{ loop.nextitem }}{{ loop.revindex }} {% endfor %}
{% set x = 1 %}{% for i in numbers %}{% set x = i %}{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% set ns = namespace(n=0) %}{% for i in numbers %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}
{% set block %}a{{ 1 }}b{% endset %}[{{ block }}]{{ block | length }}
{% macro f(a, b='B', c=none) %}({{ a }}{{ b }}{{ c }}){% endmacro %}{{ f(1) }}{{ f(1, c=3) }}{{ f(a='x', b='y') }}
{{ 'yes' if numbers else 'no' }}{{ 'yes' if empty else 'no' }}{{ 'shown' if false }}|
{{ nope is defined }}{{ nope is undefined }}{{ map is mapping }}{{ numbers is sequence }}{{ text is string }}{{ none is none }}
{{ 1 is number }}{{ true is boolean }}{{ 1 is integer }}{{ 1.5 is float }}{{ 4 is even }}{{ 3 is odd }}{{ 6 is divisibleby 3 }}
{{ numbers is iterable }}{{ text is iterable }}{{ 1 is iterable }}{{ true is true }}{{ false is false }}{{ 1 is true }}{{ 'a' is equalto 'a' }}
{{ 'b' in map }}{{ 'x' not in map }}{{ 'Ü' in text }}{{ 2 in numbers }}{{ not 2 in numbers }}
{{ nope }}|{{ nope | default('d') }}|{{ '' | default('d') }}|{{ '' | default('d', true) }}|{{ map.nope }}|{{ none }}
{{ nope.attr }}
{{ nope + 1 }}
{{ 1 < 2 and 2 < 3 or false }}{{ 1 if not false else 2 }}{{ 1 == 1 != 2 }}{{ 1 < 2 < 3 }}
{{ empty or 'fallback' }}{{ numbers and 'both' }}{{ none or 0 }}
{{ words | sort }}{{ words | sort(reverse=true) }}{{ numbers | sort | list }}{{ words | map('upper') | list }}{{ numbers | sum }}
{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}
{{ messages | rejectattr('role', 'equalto', 'user') | list | length }} {{ numbers | reject('equalto', 1) | list }} {{ numbers | select('odd') | list }}
{{ 'a,b,,c'.split(',') }}{{ ' a  b '.split() }}{{ 'a-b-c'.split('-', 1) }}{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith('bc') }}
{{ 'xxaxx'.strip('x') }}{{ 'xxa'.lstrip('x') }}{{ 'axx'.rstrip('x') }}{{ 'heLLO wOrld'.capitalize() }}{{ 'heLLO wOrld'.title() }}{{ 'a.b'.replace('.', '-') }}
{{ 'abcabc'.find('c') }}{{ 'abc'.upper() }}{{ 'ABC'.lower() }}{{ 'abc' | replace('b', 'X') }}{{ 'a b' | title }}{{ 'aBC' | capitalize }}
{{ range(5) | list }}{{ range(1, 10, 3) | list }}{% for i in range(3) %}{{ i }}{% endfor %}
{{ 'x' * 3 }}{{ [1] * 2 }}{{ [1] + [2] }}{{ 'a' + 'b' | upper }}{{ ('a' + 'b') | upper }}
{{ '%s-%d' | format('a', 3) }}{{ 'abc' | list }}{{ 5 | string | length }}{{ '5' | int + 1 }}{{ '2.5' | float }}{{ -3 | abs }}
{# a comment #}a{#- trimmed -#} b {{- ' c ' -}} d
  {% if true %}
  lstrip
  {% endif %}
tail
  {%+ if true %}kept{% endif +%}
next
{% raw %}{{ not parsed }}{% endraw %}
{{ "tab\\tnl\\nq\\"u\\u00e9" }}
{% filter upper %}abc{{ 'd' }}{% endfilter %}
{% if 1 %}a{% elif 2 %}b{% else %}c{% endif %}{% if none %}x{% elif 'q' %}y{% endif %}
{{ [1, 2, 3] | batch(2) | list }}{{ numbers | max }}{{ numbers | min }}{{ words | unique | list }}{{ numbers | reverse | list }}
{{ text | e }}{{ '<' | escape }}{{ text | safe | length }}{{ 'a  b' | wordcount }}
{{ true }} {{ True }} {{ none }} {{ None }} {{ false }} {{ False }}
{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}{% set a, b = 5, 6 %}{{ a }}{{ b }}
{% for i in numbers %}{% for j in words %}{{ loop.index }}{{ j }}{% endfor %}{{ loop.index }}{% endfor %}
{{ raise_exception('stop here') }}
{{ numbers[10] }}|{{ map['zz'] }}|
{{ numbers.count(3) }}{{ words.index('fig') }}
{{ map.keys() | list }}{{ map.values() | list }}{{ (map.items() | list)[0] }}
{{ 1
   + 2 }}
{{ dict(a=1, b='x') }}{{ {'a': 1}.update }}
{{ 'é' | length }}{{ '👩‍👩‍👧' | length }}{{ '日本'[0] }}{{ 'ß' | upper }}{{ 'İ' | lower | length }}""".split("\n")


def render(template, messages, tools, add_generation_prompt, **variables):
    texts, spans = render_jinja_template([messages], tools=tools, chat_template=template, return_assistant_tokens_mask=True,
                                         add_generation_prompt=add_generation_prompt,
                                         **{"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", **variables})
    text = texts[0]
    as_bytes = [(len(text[:b].encode()), len(text[:e].encode())) for b, e in (spans[0] if spans else [])]
    return text, as_bytes


def case(template, messages, tools, prompt, **variables):
    out = {"messages": messages, "tools": tools, "prompt": prompt}
    try:
        out["text"], out["spans"] = render(template, messages, tools, prompt, **variables)
        if "{% generation" not in template:
            out["spans"] = []
    except Exception as error:  # pylint: disable=broad-except
        out["error"] = str(error)
    return out


def snippets():
    """Lines are snippets; a line that does not close its block goes on with the next."""
    merged, held = [], ""
    for line in SNIPPETS:
        held = held + "\n" + line if held else line
        opened = sum(held.count("{% " + t) + held.count("{%+ " + t) for t in ("if ", "for ", "macro ", "filter "))
        closed = held.count("{% end") - held.count("{% endset") - held.count("{% endraw")
        if held.count("{{") > held.count("}}") or opened > closed:
            continue
        merged.append(held)
        held = ""
    assert not held, held
    return merged


def golden():
    chats = []
    for name, template in TEMPLATES.items():
        special = SPECIAL.get(name, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
        cases = [case(template, messages, tools, prompt, **special)
                 for messages in CONVERSATIONS for tools in (None, TOOLS) for prompt in (False, True)]
        cases.append(case(template, CONVERSATIONS[0] + CONVERSATIONS[0][1:], None, False, **special))
        chats.append({"name": name, "template": template, "special": special, "cases": cases})
    texts = []
    for source in snippets():
        variables = {k: v for k, v in VARIABLES.items() if k != "messages"}
        texts.append({"source": source, **case(source, VARIABLES["messages"], None, False, **variables)})
        for key in ("messages", "tools", "prompt", "spans"):
            texts[-1].pop(key, None)
    return {"chats": chats, "variables": VARIABLES, "snippets": texts}
