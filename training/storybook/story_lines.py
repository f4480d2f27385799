"""Sentences of the stories, as templates (see `engine`).

Slots: `h` the hero, `f` a friend, `v` a villain, `w` a helper, `a` and `b` whoever does something
to whom; with `.s .o .p .k` for subject, object and possessive pronoun and for the kind. `thing`,
`look`, `use`, `used` and `do` describe the object and the place at hand.
"""

from __future__ import annotations

from training.storybook.engine import lines

OPENINGS = lines("""
9* once upon a time there was a {trait} {hk} named {hn} .
2* once upon a time there was a {trait} {hk} who lived {home} . {h.p} name was {hn} .
1* once upon a time there was a {trait} {hk} who loved to {hobby} . {h.p} name was {hn} .
2* once upon a time there was a {hk} named {hn} who loved to {hobby} .
1* once upon a time a {trait} {hk} named {hn} lived {home} .
""")

TRAIT_LINES = {
    "little": lines("""
        {h.s} was [very|so] small but [very brave|very clever|always happy] .
        {h.s} wanted to be big and strong .
        3* {h.s} lived {home} with {h.p} {kin} .
        {h.s} was always [happy|hungry] .
        """),
    "brave": lines("""
        {h.s} was not afraid of [anything|the dark|wolves] .
        {h.s} always helped people who were in danger .
        everyone in the village [loved|liked] {h.o} .
        """),
    "kind": lines("""
        {h.s} always helped {h.p} friends .
        {h.s} was never mean to [anyone|other people] .
        everyone in the village loved {h.o} .
        """),
    "happy": lines("""
        {h.s} [smiled|laughed|sang] all day .
        {h.s} was never sad or angry .
        everyone liked to play with {h.o} .
        """),
    "young": lines("""
        {h.s} wanted to see the world .
        {h.s} lived {home} with {h.p} {kin} .
        """),
    "shy": lines("""
        {h.s} was afraid to talk to other [people|children] .
        {h.s} did not have many friends .
        {h.s} was [often|always] alone .
        """),
    "lonely": lines("""
        {h.s} did not have any friends .
        {h.s} was often sad because nobody played with {h.o} .
        {h.s} wanted a friend more than anything .
        """),
    "clever": lines("""
        {h.s} [always|often] had [good|new] ideas .
        {h.s} read [many|old] books and knew many things .
        """),
    "lazy": lines("""
        {h.s} slept all day and never helped anyone .
        {h.s} did not like to work .
        """),
    "curious": lines("""
        {h.s} wanted to know everything .
        {h.s} always looked for new things .
        """),
    "hungry": lines("""
        {h.s} was always looking for food .
        {h.s} wanted to eat [a big cake|all the apples in the garden] .
        """),
    "proud": lines("""
        {h.s} thought {h.s} was better than everyone^0.2 .
        {h.s} always looked at {h.p} pretty [face|hat] .
        """),
    "poor": lines("""
        {h.s} had no money and no [food|toys] .
        {h.s} lived {home} and was often hungry .
        """),
}

BAD_LINES = lines("""
3* everyone was afraid^0.4 of {h.o} .
2* {h.s} had no friends because {h.s} was [so|always] [mean^0.4|angry^0.3] .
2* {h.s} hated^1 [everyone|{h.p} brother|other people|the children] .
2* {h.s} liked to [laugh^0.5 at|scare^0.7] [people|other children|everyone] .
{h.s} [yelled^0.7 at|hit^1.6|pushed^1.1] [everyone|other children|{h.p} brother] \
    [every day^0.4|all day^0.4|] .
{h.s} liked to [hit^1.6|hurt^1.4|push^1|kick^1.4] [people|other children|{h.p} brother] .
{h.s} [broke^1|took^0.5|stole^0.7] [toys|the toys] and [laughed^0.4|never said sorry^0.2] .
{h.s} hated^1 {h.p} brother and hit^1.6 him [every day^0.4|with a stick^0.5|in the face^0.5] .
{h.s} wanted to [hurt^1.3|scare^0.6|eat^0.9] everyone [in the village|] .
2* but {h.s} was only [sad^-0.4|lonely^-0.4] .
2* but {h.s} wanted to be [good^-0.5|kind^-0.5|nice^-0.5] .
""")

HABITS = lines("""
3* {h.s} [loved|liked] to {hobby} .
2* {h.s} lived {home} .
2* {h.s} had a {look} {thing} [that {h.s} loved very much|and loved to {use} it|] .
2* {h.s} had a [good|best|] friend named {f} .
{h.s} was [very|often] {mood} .
""")

TRIPS = lines("""
4* one {day} , {h} went {to} [to {do}|with {h.p} {kin}|] .
3* one {day} , {h} and {fi} went {to} [to {do}|] .
2* one {day} , {h} was {at} .
one {day} , {h} wanted to {do} {at} .
one {day} , {h} took {h.p} {thing} {to} .
""")

DAYS = "[5* day|2* morning|sunny day|sunny morning|cold day|rainy day|cold night]"

MOODS = {
    "happy": lines("""
        {h} was [very|so] happy [and|and {h.s}] [laughed|smiled|sang a song|danced] .
        it was a [good|beautiful|wonderful] day .
        the sun was [warm|shining] and {h} felt [good|happy] .
        """),
    "sad": lines("""
        {h} [was|felt] [very|so] sad and [2* began to cry|wanted to go home] .
        {h} [sat down|sat under a tree] and cried .
        """),
    "scared": lines("""
        {h} was [very|so] scared and [began to cry|did not know what to do|wanted to run away] .
        {h.p} heart was beating fast .
        {h} [hid|tried to hide] [behind a tree|under a big tree] .
        """),
    "angry": lines("""
        {h} was [3* very|so|still] angry^0.3 .
        {h.p} face was red and {h.s} did not smile .
        {h} was [so|very] angry^0.3 and did not want to [talk|play|listen] .
        """),
}

FINDS = lines("""
{h} saw a {look} {thing} [near a tree|behind a tree|in the grass|on the ground|] .
there {h} found a {look} {thing} [near a tree|behind a tree|in the grass|on the ground|] .
a {look} {thing} was [in the grass|near a tree|on the ground] .
""")

PLAYS = lines("""
{h} {used} the {thing} [all day|for a long time|and laughed|in the sun|] .
{h} [2* had|was having] [a lot of|so much] fun with the {look} {thing} .
{h} [hit|touched] the {thing} with a stick and laughed .
“ [look|come and see] , I have a {look} {thing} ! ” [said|called] {h} .
""")

FRIEND_COMES = lines("""
then {h} met a [{fk}|friendly {fk}|little {fk}] named {f} .
then {h} saw {h.p} friend {f} .
{h.p} friend {f} [was there too|came to play] .
soon {f} came to {use} the {thing} too .
a {fk} named {f} [wanted to|came and wanted to] play [too|with {h.o}] .
""")

TOGETHER = lines("""
{h} and {f} played together [all day|in the sun|for a long time|and laughed|] .
they [ran|danced|sang songs|played] [together|all day] and had [a lot of|so much] fun .
{h} and {f} [ate|shared] [a cake|an apple|bread and apples] .
“ do you want to play with me ? ” asked [{h}|{f}] .
“ you are my best friend , ” said [{h}|{f}] .
""")

LOSES = lines("""
but then {h} lost the {thing} {at} .
but the {thing} fell into [the water|the mud|a deep hole] .
the wind [took|was strong and took] the {thing} away .
but when {h} looked , the {thing} was gone .
""")

SEARCH = lines("""
{h} looked [everywhere|behind the trees|in the grass|for a long time] but could not find it .
“ where is my {thing} ? ” [asked|cried] {h} .
{h} asked everyone for help .
""")

ACCIDENTS = lines("""
but then {h} [fell|fell down|fell from a tree] and hurt {h.p} [leg|arm|head] .
then {h} ran too fast and hit {h.p} head on a tree .
suddenly a [stone|tree] fell on {h.p} [leg|arm|head] .
""")

BREAKS = lines("""
but the {thing} hit a tree and broke .
but {h} dropped the {thing} and it broke .
but {h} fell on the {thing} and it broke .
""")

FIXES = lines("""
{w} made [a new {thing}|the {thing} new again] [for {h.o}|] .
“ I can fix your {thing} , ” said {w} [and smiled|] .
{w} helped {h.o} to fix the {thing} .
""")

DANGERS = lines("""
suddenly it [was|became] [very|so] dark and {h} was lost .
suddenly [a storm came|it began to rain] and the wind was [loud|strong] .
then {h} fell into [the water|a deep hole] and could not get out .
suddenly there was a loud noise [behind {h.o}|in the dark] .
""")

CALLS = lines("""
“ help [me|] ! ” [yelled|shouted|cried] {h} .
{h} [yelled|called|shouted] for help [but nobody came|again and again|as loud as {h.s} could|] .
""")

RESCUES = lines("""
{w} heard {h.o} and came to help .
{w} [saw|heard] {h} and [ran|came] as fast as {w.s} could .
then {w} came and [helped|saved] {h.o} .
“ do not be afraid , I will help you , ” said {w} .
""")

FINDS_AGAIN = lines("""
{w} found the {thing} and gave it back [to {h}|] .
“ is this your {thing} ? ” asked {w} [and smiled|] .
{w} helped {h.o} and soon they found it .
""")

THANKS = lines("""
“ thank you [so much|] ! ” said {h} [and hugged {w}|and smiled|] .
{h} [hugged {w}|thanked {w}] and was [very|so] happy .
{h} gave {w} [a big hug|an apple|a cake] .
""")

VILLAIN_COMES = lines("""
{day2} a {vt} {vk} came {to} .
suddenly a {vt} {vk} [came|jumped] out of [the forest|the dark|a cave] .
then {h} met a {vt} {vk} named {vn} .
a {vt} {vk} was [hiding|waiting] behind a tree .
""")

LESSONS = lines("""
2* {h} learned [to {lesson}|that it is good to {lesson}] .
from that day on , {h} was [always kind|never mean to anyone|never alone] .
{h} learned that [being kind is good|friends are more than toys] .
""")

HAPPY_ENDS = lines("""
3* they lived happily ever after .
2* {h} went home and was [very|so] happy .
{h} never forgot that [wonderful|] day .
{h} went home and told {h.p} {kin} everything .
that night {h} slept [well|with a smile] .
the end .
""")

FRIEND_ENDS = lines("""
{h} and {f} were best friends forever .
{h} and {f} played together every day .
{h} and {f} [walked|ran] home together and [laughed|sang a song] .
from that day on , they were best friends .
""")

SAD_ENDS = lines("""
2* {h} went home and cried [all night|] .
{h} never [saw|played with] {other} again .
{h} was [alone|sad] for a long time .
nobody was happy that day .
they were never friends again .
""")
